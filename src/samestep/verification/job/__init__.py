"""Verification of a job: its plan against one worker bit for bit, one worker against the plain step up to rounding."""
