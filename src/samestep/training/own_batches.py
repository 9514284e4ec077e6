"""Batches that a loop of the user's own draws: the same whole one on every worker, or the job's, but not both.

What the loop does with the model between two steps belongs here too, as far as it changes the next one.
"""

import zlib
from collections.abc import Mapping
from typing import Any

from samestep.data.batch_mark import batch_mark, in_words
from samestep.data.batches import num_rows
from samestep.errors import JobRefused
from samestep.parallel.execution.buffers import Buffers
from samestep.training.trainer import Training


class DrawnBatches:
    """The batches that one worker was given so far; must be alike on all."""

    way_out = (
        "Trainer.step takes the whole batch, the same one on every worker, and cuts it into shards itself, unlike a "
        "process of DDP with a DistributedSampler, which has rows of its own: draw the batch from a generator that is "
        "seeded alike on every worker and without the rank, or give Job.data and call step()"
    )

    def __init__(self) -> None:
        self.last: Any = None
        self._word = 0

    def draw(self, batch: Any) -> None:
        self.last, self._word = batch, batch_mark(batch, self._word)

    def word(self) -> int:
        return self._word

    def parts(self) -> Mapping[str, str]:
        if self.last is None:
            return {"the batch": "the job's own"}
        return {"the number of rows of the batch": str(num_rows(self.last)), "the batch": in_words(self.last)}


class Modes:
    """Whether each module is in train or eval mode; must be alike on all workers."""

    way_out = "call train() and eval() on every worker alike, and put back before the next step what was set"

    def __init__(self, training: Training) -> None:
        self._modules = dict(training.executor.model.named_modules())

    def word(self) -> int:
        return zlib.crc32(bytes(module.training for module in self._modules.values()))

    def parts(self) -> Mapping[str, str]:
        modes = ("eval", "train")
        return {f"the mode of {name or 'the model'}": modes[one.training] for name, one in self._modules.items()}


class OwnLoop:
    """The steps of a loop of the user's own, and what may not happen between them."""

    def __init__(self, training: Training) -> None:
        self.training = training
        self.drawn = DrawnBatches()
        training.executor.alike.facts += [self.drawn, Modes(training)]
        self._are_own: bool | None = None  # the batches so far
        self._at_rest = seen(training.executor.buffers)

    def begin(self, batch: Any) -> None:
        """Before a step on `batch`, or on the job's next one (None). Raises JobRefused."""
        is_own, executor = batch is not None, self.training.executor
        step = self.training.step_number
        if self._are_own not in (None, is_own):
            kinds = ("step()", "step(batch)")
            raise JobRefused(
                f"step {step} is {kinds[is_own]}, and the steps before it were {kinds[not is_own]}: the position in "
                "the job's data, which is the number of steps done, would not be that of either: draw all batches "
                "yourself (samestep's order is not needed then), or none"
            )
        if is_own:
            self.drawn.draw(batch)
            # Before they agree, workers of a cut model and of synchronized BatchNorm exchange shards.
            if self._are_own is None or executor.plan.stages or executor.plan.numerics.sync_batchnorm:
                executor.alike.compare(executor.transport, step)
        self._are_own = is_own

    def rest(self) -> None:
        """After a call that may change buffers."""
        self._at_rest = seen(self.training.executor.buffers)

    def check_left_alone(self) -> None:
        """Raises JobRefused where a buffer was changed since the last call."""
        buffers, step = self.training.executor.buffers, self.training.step_number
        for name, then, now in zip(buffers.names, self._at_rest, seen(buffers), strict=True):
            if then != now:
                raise JobRefused(
                    f"buffer {name} was changed between two steps, before step {step}: shards of other workers do not "
                    "see that. A forward in train mode changes statistics: call Trainer.model inside eval() and "
                    "no_grad(), or on a copy.deepcopy of it"
                )


def seen(buffers: Buffers) -> list[tuple[int, int]]:
    """The tensor that is bound to each buffer and its version: other numbers after a change."""
    bound = [buffers.bound_tensor(i) for i in range(len(buffers.values))]
    return [(id(value), value._version) for value in bound]
