"""A baton: several threads, of which exactly one runs.

torch's default generator is process-wide, so threads that run freely draw from one another's random
streams. Whoever holds the baton owns the generators; at a handover their states are swapped.
"""

import random
import threading
from collections.abc import Callable
from typing import Any

import numpy as np
import torch


class Baton:
    """Handed over only where a thread waits, so what runs between two waits is never interleaved."""

    def __init__(self) -> None:
        self._turn = threading.Condition()
        self._held = False

    def take(self, ready: Callable[[], bool] = lambda: True) -> None:
        """Wait until nobody holds the baton and `ready()`; then hold it."""
        with self._turn:
            self._turn.wait_for(lambda: not self._held and ready())
            self._held = True

    def give(self) -> None:
        """Let another thread run."""
        with self._turn:
            assert self._held, "only the holder gives the baton away"
            self._held = False
            self._turn.notify_all()

    def wait_for(self, ready: Callable[[], bool]) -> None:
        """Let others run until `ready()`; the generators are then as this thread left them."""
        if ready():
            return
        states = generator_states()
        self.give()
        self.take(ready)
        restore_generators(states)


def generator_states() -> tuple[Any, ...]:
    return torch.default_generator.get_state(), random.getstate(), np.random.get_state()


def restore_generators(states: tuple[Any, ...]) -> None:
    torch.default_generator.set_state(states[0])
    random.setstate(states[1])
    np.random.set_state(states[2])
