"""Times of a worker's actions, its current whereabouts, and the clocks of several hosts brought to one.

It may not know who computes what, nor what is made of the times.
"""
