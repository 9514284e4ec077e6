"""Measurements of a job on this machine, and the choice of a plan from them.

It trains copies only and knows nothing of leaders and runs.
"""
