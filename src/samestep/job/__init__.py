"""Jobs: what a user asks to be trained (model, loss, data, metrics, callbacks), and the report that comes back.
The room knows nothing of workers' communication: everything in it means the same on one worker and on many."""
