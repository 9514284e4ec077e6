"""Random streams, keyed by what is computed and never by who computes it."""

import random

import numpy as np
import torch

from samestep.numerics import key


def enter(*parts: int | str) -> None:
    """Start the stream named by `parts` in torch's, Python's and NumPy's default generators.

    Streams in use: (seed, "model"), (seed, "step", t, shard), (seed, "row", epoch, row),
    (seed, "evaluate", t, piece).
    """
    value = key(*parts)
    torch.default_generator.manual_seed(value)
    random.seed(value)
    np.random.seed(value)
