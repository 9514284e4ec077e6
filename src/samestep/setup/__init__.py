"""Plan and job become this worker's part: the only room that knows all techniques of `parallel`.

It also checks plans, makes those that have names, and measures networks for the planner. It trains nothing.
"""
