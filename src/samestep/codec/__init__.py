"""Compression of gradients on edges of the reduction tree, as values; error feedback is a wrapper.

A codec may not know what a transport is, nor who computes.
"""
