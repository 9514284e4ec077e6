"""States of the generator at each random operation of the list, so that running it draws the same numbers."""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass
class Draw:
    """State in which an operation finds its generator: as given, a certain one, or as an earlier draw left it."""

    generator: torch.Generator
    number: int
    state: Tensor | None = None
    follows: int | None = None
    is_returned_to: bool = False


class Marks:
    """States in which the factory can find a generator, by the operation that left it so.

    randn(4)              leaves mark 0
    with fork_rng():      keeps mark 0
        manual_seed(1)    a state that is no mark
        randn(9)          from that state; leaves mark 1
    randn(4)              finds mark 0, not 1: continues from where the first operation ended
    """

    def __init__(self, generator: torch.Generator, start: Tensor | None) -> None:
        self.generator = generator
        self.start = start if start is not None else generator.get_state()
        self._found: dict[bytes, Draw] = {}
        self._last: Draw | None = None
        self._is_given = start is not None  # the caller of a replay seeds it as for the recording

    def find(self, number: int) -> Draw:
        """The draw of operation `number`, from the state that the generator is in."""
        state = self.generator.get_state()
        found = self._found.get(state.numpy().tobytes())
        if found is None:
            is_untouched = self._last is None and self._is_given and torch.equal(state, self.start)
            return Draw(self.generator, number, state=None if is_untouched else state)
        found.is_returned_to |= found is not self._last
        return Draw(self.generator, number, follows=found.number)

    def mark(self, draw: Draw) -> None:
        """Put the generator into a state that stands for the end of a draw."""
        self.generator.manual_seed(0x5A3E57E9 << 16 | draw.number)
        self._found[self.generator.get_state().numpy().tobytes()] = draw
        self._last = draw
