"""The mixing function of splitmix64 (Steele et al. 2014): the same well mixed bits on every machine."""

import numpy as np
from numpy.typing import NDArray


def mixed_bits(numbers: NDArray[np.int64], key: int = 0) -> NDArray[np.uint64]:
    """64 well mixed bits for every number; another key gives other bits."""
    mixed = numbers.astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15) + np.uint64(key)
    mixed = (mixed ^ mixed >> np.uint64(30)) * np.uint64(0xBF58476D1CE4E5B9)
    mixed = (mixed ^ mixed >> np.uint64(27)) * np.uint64(0x94D049BB133111EB)
    return mixed ^ mixed >> np.uint64(31)
