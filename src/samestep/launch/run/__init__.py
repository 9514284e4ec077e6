"""A run on this host: the command's launcher, the fork server, the leader, its workers and their events.

It knows nothing of other hosts; `hosts` uses its workers.
"""
