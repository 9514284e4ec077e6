"""How a step is computed by several workers: gradients, cuts of the model, lazy initial values, and the executors.

Nothing here chooses a plan, watches a run or knows of files; `setup` puts the parts together.
"""
