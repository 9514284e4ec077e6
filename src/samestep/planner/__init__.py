"""The planner: finds the fastest plan for a job on a cluster, and explains the choice.

It decides from values alone: it measures nothing, runs nothing and knows neither executors nor launchers.
"""
