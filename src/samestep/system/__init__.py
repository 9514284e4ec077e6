"""The operating system and the files it keeps: memory, processes, devices, control groups, messages, JSON and units.

Nothing here knows of training, plans or runs.
"""
