"""Random streams, keyed by what is computed and never by who computes it."""

import random

import numpy as np
import torch
from torch import Tensor

from samestep.device import uses_gpu
from samestep.numerics import key

OTHERS = 4 * (628 + 624) + 16  # bytes of Python's and NumPy's generators in a state


def enter(*parts: int | str) -> None:
    """Start the stream named by `parts` in torch's, Python's and NumPy's default generators.

    Streams in use: (seed, "model"), (seed, "step", t, shard), (seed, "row", epoch, row), (seed, "order", epoch),
    (seed, "evaluate", t, piece), (seed, "slice", t, set, layer, k).
    """
    value = key(*parts)
    torch.default_generator.manual_seed(value)
    if uses_gpu():  # which has a generator of its own
        torch.cuda.manual_seed(value)
    random.seed(value)
    np.random.seed(value)


def leave() -> Tensor:
    """Where the generators stand, as bytes: what `resume` needs, on whichever worker."""
    version, words, gauss = random.getstate()
    name, keys, position, has_gauss, cached = np.random.get_state(legacy=True)
    assert (version, name) == (3, "MT19937")
    numbers = [*words, position, has_gauss, gauss is not None]
    packed = np.array(numbers, dtype=np.uint32).tobytes() + np.asarray(keys, dtype=np.uint32).tobytes()
    packed += np.array([cached, gauss or 0.0]).tobytes()
    device = [torch.cuda.get_rng_state()] if uses_gpu() else []
    return torch.cat([torch.get_rng_state(), torch.frombuffer(bytearray(packed), dtype=torch.uint8), *device])


def resume(state: Tensor) -> None:
    """Go on where `leave` was called."""
    own = torch.get_rng_state().numel()
    torch.set_rng_state(state[:own].clone())
    if uses_gpu():
        torch.cuda.set_rng_state(state[own + OTHERS :].clone())
    packed = state[own : own + OTHERS].numpy().tobytes()
    numbers = np.frombuffer(packed, dtype=np.uint32, count=628 + 624)
    cached, gauss = np.frombuffer(packed, dtype=np.float64, offset=4 * (628 + 624))
    words, (position, has_gauss, has_own) = numbers[:625], (int(n) for n in numbers[625:628])
    random.setstate((3, tuple(map(int, words)), float(gauss) if has_own else None))
    np.random.set_state(("MT19937", numbers[628:], position, has_gauss, float(cached)))
