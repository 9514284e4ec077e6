"""A script that fails, everywhere."""

raise ValueError("no data at /nowhere")
