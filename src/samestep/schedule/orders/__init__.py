"""Orders: pure functions from a grid to the order in which each worker takes sets of shards through its stages.

They know nothing of the actions that an order is lowered to.
"""
