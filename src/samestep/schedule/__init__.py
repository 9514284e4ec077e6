"""Schedules: the actions of a step as values, with their orders, passes, checker, simulator and drawing.

The room says in which order workers act. It knows no tensors, no transport, and not how an action is performed.
"""
