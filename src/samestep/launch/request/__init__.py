"""A run as it is asked for: options, the request that carries them, and the job and plan that they resolve into.

It starts no process and knows nothing of how a run is carried out.
"""
