"""The executor of a plan with stages: shards pass through segments of the model, which may be sliced.

It sends and receives what crosses a cut, computes a forward again before its backward where the plan says so, and
splits backwards into two parts. What a segment computes is the network's (`network.py`).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from torch import Tensor

from samestep.job.objective import ShardLoss
from samestep.numerics import random_streams
from samestep.numerics.reduction_tree import local_plan
from samestep.parallel.execution.executor import Executor, StepState
from samestep.parallel.execution.network import Network, OtherWayTaken
from samestep.schedule import actions


@dataclass(kw_only=True)
class CutExecutor(Executor):
    """One worker's parts of a cut model, and how each action uses them."""

    network: Network
    moved: dict[tuple[int, int], dict[int, Tensor]] = field(default_factory=dict)  # buffers, by shard and segment

    def forward(self, action: actions.Forward, state: StepState) -> None:
        shard, own = action.shard, self.network.buffers[action.segment]
        with self._precision(), self.unchanged.during_forward():
            if action.segment == 0:
                random_streams.enter(self.plan.numerics.seed, "step", state.number, shard)
            loss = self._through(action, state)
            changed = self.buffers.end_shard(shard, own)
            self.moved[shard, action.segment] = self.buffers.taken(changed)
            state.note_changed(shard, changed)
        if loss is not None:
            self._keep_loss(shard, loss, state)

    def _through(self, action: actions.Forward, state: StepState) -> ShardLoss | None:
        """Forward through a segment; from its beginning once more where a guard turns to another way."""
        shard, own = action.shard, self.network.buffers[action.segment]
        while True:
            self.buffers.begin_shard(own)
            try:
                return self.network.forward(
                    shard, action.segment, state.batches[shard], state.rows[shard], self.objective
                )
            except OtherWayTaken:
                self.buffers.forget(own)

    def recompute(self, action: actions.Recompute, state: StepState) -> None:
        own = self.network.buffers[action.segment]
        self.buffers.begin_shard(own)
        with self._precision():
            loss = self.network.recompute(action.shard, action.segment, self.objective)
        self.buffers.forget(own)
        if loss is not None:
            state.losses[action.shard] = loss

    def backward(self, action: actions.Backward, state: StepState) -> None:
        shard, segment = action.shard, action.segment
        stage = self.network.stage_of(segment)
        loss: ShardLoss | None = state.losses.pop(shard) if self.is_last(segment) else None
        is_split = self.plan.splits_backward(stage)
        self.gradients.begin_shard(shard, *self._work(state).folds[stage][shard], may_wait=is_split)
        seeded = None if loss is None else self.objective.seeded(loss, state.batch_rows)
        moved = self.moved.pop((shard, segment))
        self.buffers.give_back(moved)  # a checkpoint inside runs forward again, and they move once more
        self.network.backward(shard, segment, seeded)
        state.note_changed(shard, self.buffers.end_shard(shard, moved))
        if is_split:
            self.gradients.pause_shard(segment)
        else:
            self.gradients.end_shard(self.network.entries[segment])
        self.buffers.forget(self.network.buffers[segment])
        if loss is not None:
            state.facts[shard] = loss.facts

    def backward_weight(self, action: actions.BackwardWeight, state: StepState) -> None:
        self.gradients.resume_shard(action.shard, action.segment)
        self.network.backward_weight(action.shard, action.segment)
        self.gradients.end_shard(self.network.entries[action.segment])

    def send(self, action: actions.Send, state: StepState) -> None:
        self.network.send(action.shard, action.stage, action.peer)

    def receive(self, action: actions.Receive, state: StepState) -> None:
        shard = action.shard
        self.network.receive(shard, action.stage, action.peer, state.batches[shard], state.rows[shard])

    def send_gradient(self, action: actions.SendGradient, state: StepState) -> None:
        self.network.send_gradient(action.shard, action.stage, action.peer)

    def receive_gradient(self, action: actions.ReceiveGradient, state: StepState) -> None:
        self.network.receive_gradient(action.shard, action.stage, action.peer)

    def slice_forward(self, action: actions.SliceForward, state: StepState) -> None:
        with self._precision():
            self.network.slice_forward(action.segment, action.shards, len(state.rows), state.number)

    def slice_backward(self, action: actions.SliceBackward, state: StepState) -> None:
        num_sets = self._work(state).num_sets
        number = action.shards.start // self.plan.set_size(len(state.rows))
        self.gradients.begin_shard(number, local_plan(range(num_sets), num_sets).folds[number])
        self.network.slice_backward(action.segment, action.shards)
        self.gradients.end_shard(self.network.entries[action.segment])

    def publish(self, action: actions.Publish, state: StepState) -> None:
        self.network.clear()
        self.moved.clear()
        super().publish(action, state)

    def entries_in(self, segment: int) -> Sequence[int]:
        return self.network.entries[segment]

    def is_last(self, segment: int) -> bool:
        return self.network.is_last(segment)

    def wrap_recording(self, wrapper: Callable[[Callable[[Any], Any], Any], Any]) -> None:
        recipe = self.network.recipe
        record = recipe.of
        recipe.of = lambda batch, answers=(): wrapper(partial(record, answers=answers), batch)  # type: ignore[method-assign]

    def _schedule(self, num_shards: int, number: int) -> actions.Schedule:
        clips, sliced = self.clip_grad_norm is not None, self.network.structure.sliced
        return self.plan.schedule(self.plan.grid(num_shards, sliced), self.transport.rank, clip=clips)
