"""State that several workers or hosts have copies of, by the names that audits give it, and its fingerprints."""

import math
from collections.abc import Iterator

import torch
from torch import Tensor

from samestep.audit.fingerprint import WIDE, WORD, blocks, fingerprint, joined
from samestep.audit.memory_watch import MemoryWatch, WatchedTensor, buffer_parts, state_parts
from samestep.parallel.execution.executor import Executor
from samestep.parallel.gradients.layout import CHUNK
from samestep.state import snapshot


def copies(executor: Executor, watch: MemoryWatch) -> Iterator[tuple[str, Tensor]]:
    """All state that hosts or workers have copies of, by name."""
    for part in (*watch.parameter_parts(), *state_parts(executor)):
        yield from chunks(part)
    yield from steady(executor)


def steady(executor: Executor) -> Iterator[tuple[str, Tensor]]:
    """State that every worker has a copy of, by name."""
    for part in buffer_parts(executor):
        yield part.name, part.flat
    for name, constant in snapshot.constants(executor):
        yield f"frozen parameter {name}", constant.detach()


def steady_fingerprints(executor: Executor) -> Iterator[tuple[str, int]]:
    return ((name, fingerprint(tensor)) for name, tensor in steady(executor))


def distance(own: Tensor, right: Tensor) -> float:
    """The sum of absolute differences; infinite where elements are not numbers."""
    found = float((own.double() - right.double()).abs().sum())
    return found if math.isfinite(found) else math.inf


def chunks(tensor: WatchedTensor) -> Iterator[tuple[str, Tensor]]:
    """The tensor in pieces of 32,768 elements of its own index, the same whoever holds which of them."""
    for number, piece in enumerate(torch.split(tensor.flat, CHUNK)):
        first = tensor.start + number * CHUNK
        yield f"{tensor.name} (between elements {first} and {first + len(piece) - 1})", piece


def chunk_fingerprints(tensor: WatchedTensor) -> Iterator[tuple[str, int]]:
    """Fingerprints of the pieces of a tensor, by name."""
    per = CHUNK * tensor.flat.element_size() // (WIDE * WORD)
    for (name, _), found_there in zip(chunks(tensor), torch.split(blocks(tensor.flat), per), strict=True):
        yield name, joined(found_there)
