"""The observer that notes a worker's steps for `samestep verify`, without changing them.

Load         rows              of every shard
Forward      weights           that the shard is computed with, again before its backward
             random stream     states of the generators after a shard
             activation        of every layer without layers of its own
Backward     local gradient    of every parameter, as autograd hands it over
Agree        loss, loss weight of every shard
Reduce       gradient          of the pieces that this worker updates
Clip         clip norm
Update       setting, optimizer state
Publish      parameter, buffer
evaluate     evaluation        the loss and the metrics
"""

import math
from collections.abc import Callable, Iterator, Mapping
from contextvars import ContextVar
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from samestep.data.batches import tensors_in
from samestep.numerics import random_streams
from samestep.parallel.execution.attendant import Attendant
from samestep.parallel.execution.executor import Executor, StepState
from samestep.parallel.gradients.layout import CHUNK, Piece, storage_order
from samestep.schedule import actions
from samestep.verification.record import AS, Key, RecordWriter, tensor_digest

MANY = 64 * CHUNK  # elements of a parameter above which its stretches are folded
EVALUATED = 4  # batches of held-out rows, at most


class Observer(Attendant):
    """Records one executor's values after every action."""

    def __init__(self, executor: Executor, recorder: RecordWriter) -> None:
        self._executor, self._recorder = executor, recorder
        self._shard: ContextVar[int | None] = ContextVar("shard", default=None)  # shards in lockstep have threads
        self._after: dict[type, Callable[[StepState], None]] = {
            actions.Load: self._rows,
            actions.Agree: self._losses,
            actions.Reduce: self._gradients,
            actions.Clip: lambda state: self._note("clip norm", "", state.norm),
            actions.Update: self._optimizer,
            actions.Publish: self._end,
        }
        executor.gradients.when_arrived = self._local_gradient
        self._forward, self._backward = executor.forward, executor.backward
        executor.forward = self._watched_forward  # type: ignore[method-assign]
        executor.backward = self._watched_backward  # type: ignore[method-assign]
        executor.wrap_recording(self._unwatched)
        for name, module in executor.model.named_modules():
            if any(param is not None for param in module._parameters.values()):
                module.register_forward_pre_hook(partial(self._weights_read, name))
            if not any(True for _ in module.children()):
                module.register_forward_hook(partial(self._activation, name))

    def after_action(self, action: actions.Action, state: StepState) -> None:
        look = self._after.get(type(action))
        if look is not None:
            look(state)

    def _note(self, kind: str, name: str, value: Tensor | float | str, shard: int = -1, part: int = 0) -> None:
        self._recorder.note(Key(kind, name, shard, part), value)

    def _rows(self, state: StepState) -> None:
        for shard, batch in state.batches.items():
            for name, tensor in tensors_in(batch):
                self._note("rows", name, tensor, shard)

    def _weights_read(self, name: str, module: nn.Module, inputs: Any) -> None:
        """Note a fingerprint of a module's parameters; the values would be noted once per shard."""
        shard = self._shard.get()
        if shard is not None:
            for local, param in module._parameters.items():
                if param is not None:
                    place = f"{name}.{local}" if name else local
                    self._note("weights", f"{place} in forward", tensor_digest(param), shard)

    def _watched_backward(self, action: actions.Backward, state: StepState) -> None:
        layout = self._executor.layout
        for i in self._executor.entries_in(action.segment):
            bits = tensor_digest(layout.entries[i].param)
            self._note("weights", f"{layout.entries[i].name} in backward", bits, action.shard)
        self._backward(action, state)

    def _watched_forward(self, action: actions.Forward, state: StepState) -> None:
        token = self._shard.set(action.shard)
        try:
            self._forward(action, state)
        finally:
            self._shard.reset(token)
        if self._executor.is_last(action.segment):
            self._note("random stream", "after forward", random_streams.pack(random_streams.leave()), action.shard)

    def _unwatched(self, record: Callable[..., Any], *batch: Any) -> Any:
        """Record the forward of a new shape without notes: it belongs to no shard."""
        token = self._shard.set(None)
        try:
            return record(*batch)
        finally:
            self._shard.reset(token)

    def _activation(self, name: str, module: nn.Module, inputs: Any, output: Any) -> None:
        shard = self._shard.get()
        if shard is not None:
            for local, tensor in tensors_in(output):
                self._note("activation", f"{name}{local and f' {local}'}", tensor, shard)

    def _local_gradient(self, shard: int, entry: int, grad: Tensor) -> None:
        entries = self._executor.layout.entries
        own, first = entries[entry], entries[entry].tied_to
        name = own.name if first is None else f"{entries[first].name}{AS}{own.name}"
        self._note("local gradient", name, grad, shard)

    def _losses(self, state: StepState) -> None:
        for shard, (total, weight, is_mean) in state.facts.items():
            self._note("loss", "of a mean" if is_mean else "", total, shard)
            self._note("loss weight", "", weight, shard)
        if state.facts or not math.isnan(state.loss):  # logical workers between meetings do not know it yet
            self._note("loss", "of the batch", state.loss)

    def _gradients(self, state: StepState) -> None:
        for piece, _ in self._executor.update.targets:
            found = self._executor.gradient(state, piece)
            name = self._executor.layout.entries[piece.entry].name
            if found is None:
                self._note("gradient", name, "none", part=piece.start // CHUNK)
            else:
                self._stretches("gradient", name, found, piece)
        self._wholes("gradient", self._executor.gradients.total)

    def _optimizer(self, state: StepState) -> None:
        update = self._executor.update
        for number, group in enumerate(update.state.hyperparameters()):
            for name, value in group.items():
                if isinstance(value, int | float | Tensor):
                    self._note("setting", f"{name} of group {number}", value)
        for piece, kind, key, value in update.state.pieces():
            name = f"{key} of {self._executor.layout.entries[piece.entry].name}"
            if kind == "elementwise":
                self._stretches("optimizer state", name, value, piece)
            else:
                self._note("optimizer state", name, value, part=piece.start // CHUNK)

    def _end(self, state: StepState) -> None:
        for piece, _ in self._executor.update.targets:
            entry = self._executor.layout.entries[piece.entry]
            flat = storage_order(entry.param.detach())[piece.start : piece.stop]
            self._stretches("parameter", entry.name, flat, piece)
        self._wholes("parameter", lambda i: self._executor.layout.entries[i].param.detach())
        for name, buffer in zip(self._executor.buffers.names, self._executor.buffers.values, strict=True):
            self._note("buffer", name, buffer)
        self._recorder.end_step(state.number)

    def evaluated(self, step: int, metrics: Mapping[str, float]) -> None:
        """Note an evaluation after `step` steps; it is written with the next step, or by `finish`."""
        for name, value in metrics.items():
            self._note("evaluation", name, value)

    def finish(self, step: int) -> None:
        """Write what was noted after the last step."""
        self._recorder.end_step(step)

    def _wholes(self, kind: str, value_of: Callable[[int], Tensor]) -> None:
        """Note sliced parameters as wholes, where one worker has all slices: a plain loop knows no slices."""
        if self._executor.transport.size > 1:
            return
        layout = self._executor.layout
        slices: dict[int, list[int]] = {}
        for i, entry in layout.owners():
            if entry.along is not None:
                slices.setdefault(id(entry.whole), []).append(i)
        names = {id(param): name for name, param in self._executor.model.named_parameters()}
        for whole, numbers in slices.items():
            dim = next(entry.along[0] for i in numbers if (entry := layout.entries[i]).along is not None)
            joined = torch.cat([value_of(i) for i in numbers], dim).contiguous()
            for part, stretch, width in stretches(storage_order(joined), 0, joined.numel()):
                self._recorder.note(Key(kind, names[whole], part=part), stretch, width)

    def _stretches(self, kind: str, name: str, flat: Tensor, piece: Piece) -> None:
        numel = self._executor.layout.entries[piece.entry].param.numel()
        for part, stretch, width in stretches(flat, piece.start, numel):
            self._recorder.note(Key(kind, name, part=part), stretch, width)


def stretches(flat: Tensor, start: int = 0, numel: int = 0) -> Iterator[tuple[int, Tensor, int]]:
    """A parameter's elements from `start` on, cut where any worker's piece may end.

    Yields number, elements, and how many of them are folded into one for a parameter of `numel` elements.
    """
    width = 1 if numel <= MANY else 16
    for at, part in enumerate(torch.split(flat, CHUNK)):
        yield start // CHUNK + at, part, width
