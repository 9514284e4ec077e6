"""The sync policies other than exact: stale gradients, logical workers, averaging, and the bounds that they keep.

The text of a policy is read in `numerics/policy.py`. Nothing here moves bytes.
"""
