"""Lazy initialization: record a model's factory without computing it, and replay it for a worker's parts only.
The room knows nothing of plans or workers: a caller says which parameters it has memory for.
"""
