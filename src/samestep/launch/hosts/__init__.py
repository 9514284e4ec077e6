"""Workers that a launcher has started one by one, on one host or several: they find one another and train together.

It starts no worker; those of torchrun, srun, Ray Train or Kubernetes are there already.
"""
