"""Training as one worker does it: steps, evaluation, checkpoints, rebalancing; beside it, a plain loop to compare with.

It may not know how runs are started, nor who asks for them.
"""
