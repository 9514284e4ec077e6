"""Executors: a worker's parts, one method per action of a schedule, and the state that it owns.

An executor decides nothing about order; it may not know who made the schedule or the plan.
"""
