"""Data: rows, their order, and where they are read from (tensors, .npy and Parquet files, data sets, iterators).
The room knows nothing of jobs, plans or workers: it is asked for rows by number, and returns batches."""
