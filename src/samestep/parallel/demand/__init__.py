"""Demand: the memory and the traffic that a plan asks of every worker, counted before anything is allocated.
The room computes nothing of the step; it knows plan, layout, cut and schedule, and no transport or process."""
