"""State that outlives a worker: its digest, and checkpoints that any number of workers can read back.

It may not know who trains, nor how a piece of state came to be.
"""
