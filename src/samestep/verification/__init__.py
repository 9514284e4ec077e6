"""Verification: a run compared with the same training on one worker, and the first difference with its likely cause.

It reads records and starts scripts, and knows neither how a job is launched nor how a plan was chosen.
"""
