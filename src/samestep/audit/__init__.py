"""Attendants that check a training: replicas stay equal, memory at rest stays the same, rows are used once per epoch.

It may not know who builds the training that it attends, and no step imports it.
"""
