"""Verification of a plain PyTorch script, run on several processes and on one under hooks that record its steps."""
