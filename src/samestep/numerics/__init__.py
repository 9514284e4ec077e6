"""The choices that fix the bits of a run: shards, the reduction tree, random streams, sync policy, numeric environment.

It may not know the number of workers.
"""
