"""Random streams, keyed by what is computed and never by who computes it."""

import random
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from samestep.numerics.numerics import key
from samestep.system.device import uses_gpu

WORDS, GAUSS = struct.Struct("<628I"), struct.Struct("<dd")
OTHERS = WORDS.size + 4 * 624 + GAUSS.size  # bytes of Python's and NumPy's generators in a packed state


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


class State(NamedTuple):
    """States of the random generators."""

    torch: Tensor
    gpu: Tensor | None
    python: tuple[Any, ...]
    numpy: tuple[Any, ...]


def leave() -> State:
    """States of the random generators, for `resume`."""
    gpu = torch.cuda.get_rng_state() if uses_gpu() else None
    return State(torch.get_rng_state(), gpu, random.getstate(), tuple(np.random.get_state(legacy=True)))


def resume(state: State) -> None:
    """Continue the stream from where `leave` was called; may be repeated."""
    torch.set_rng_state(state.torch)
    if state.gpu is not None:
        torch.cuda.set_rng_state(state.gpu)
    random.setstate(state.python)
    np.random.set_state(state.numpy)


@contextmanager
def kept() -> Iterator[None]:
    """Inside, streams may be entered; afterwards the generators are as they were."""
    state = leave()
    try:
        yield
    finally:
        resume(state)


def same(a: State, b: State) -> bool:
    return torch.equal(pack(a), pack(b))


def pack(state: State) -> Tensor:
    """The state as bytes, to resume it on another worker. It takes longer than to leave and to resume."""
    version, words, gauss = state.python
    name, keys, position, has_gauss, cached = state.numpy
    assert (version, name) == (3, "MT19937")
    numbers = (*words, position, has_gauss, gauss is not None)
    packed = WORDS.pack(*numbers) + np.asarray(keys, dtype=np.uint32).tobytes() + GAUSS.pack(cached, gauss or 0.0)
    own = torch.frombuffer(bytearray(packed), dtype=torch.uint8)
    return torch.cat([state.torch, own, *([] if state.gpu is None else [state.gpu])])


def packed_size() -> int:
    """Bytes of a packed state."""
    gpu = torch.cuda.get_rng_state().numel() if uses_gpu() else 0
    return torch.default_generator.get_state().numel() + OTHERS + gpu


def unpack(packed: Tensor) -> State:
    """The state that was packed."""
    size = torch.get_rng_state().numel()
    own = packed[size : size + OTHERS].numpy().tobytes()
    *words, position, has_gauss, has_own = WORDS.unpack_from(own)
    keys = np.frombuffer(own, dtype=np.uint32, count=624, offset=WORDS.size).copy()
    cached, gauss = GAUSS.unpack_from(own, WORDS.size + keys.nbytes)
    gpu = packed[size + OTHERS :].clone() if uses_gpu() else None
    python = 3, tuple(words), gauss if has_own else None
    return State(packed[:size].clone(), gpu, python, ("MT19937", keys, position, has_gauss, cached))
