"""Where the generator stands at each random operation of the list, so that running it draws the same numbers."""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass
class Draws:
    """How an operation meets its generator: as it is given, in a state, or as an earlier draw left it."""

    generator: torch.Generator
    number: int
    state: Tensor | None = None
    follows: int | None = None
    is_returned_to: bool = False


class Marks:
    """The states in which the factory can find a generator, each for the operation that left it so.

    randn(4)              leaves mark 0
    with fork_rng():      keeps mark 0
        manual_seed(1)    a state that is no mark
        randn(9)          from that state; leaves mark 1
    randn(4)              finds mark 0, not 1: from where the first operation ended
    """

    def __init__(self, generator: torch.Generator, start: Tensor | None) -> None:
        self.generator = generator
        self.start = start if start is not None else generator.get_state()
        self._found: dict[bytes, Draws] = {}
        self._last: Draws | None = None
        self._is_given = start is not None  # whoever runs the list seeds it as for the recording

    def place(self, number: int) -> Draws:
        state = self.generator.get_state()
        found = self._found.get(state.numpy().tobytes())
        if found is None:
            goes_on = self._last is None and self._is_given and torch.equal(state, self.start)
            return Draws(self.generator, number, state=None if goes_on else state)
        found.is_returned_to |= found is not self._last
        return Draws(self.generator, number, follows=found.number)

    def mark(self, draws: Draws) -> None:
        self.generator.manual_seed(0x5A3E57E9 << 16 | draws.number)
        self._found[self.generator.get_state().numpy().tobytes()] = draws
        self._last = draws
