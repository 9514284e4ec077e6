"""Gradients from a kernel to the new weight: layout, slots, the tree's sums within and between hosts, the update.

It may not know what a model computes, nor in which order actions come.
"""
