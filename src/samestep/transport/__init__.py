"""Bytes between workers: one narrow interface for threads, processes of one host, and several hosts.

It may not know what the bytes are for: neither plans nor schedules, neither gradients nor activations.
"""
