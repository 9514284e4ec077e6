"""The executor: one small method per kind of action. It decides nothing; the schedule does.

This one has the whole model: its worker computes shards of every step, as data parallelism does. The others are
subclasses that own what differs: `cut_executor.py`, `stale_executor.py` and `local_executor.py`.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from samestep.job.loss_checks import not_finite, without_gradient
from samestep.job.objective import LossFacts, Objective, ShardLoss
from samestep.numerics import random_streams
from samestep.numerics.numerics import num_shards_of, shard_rows
from samestep.parallel.execution.agreement import Alike, WorkerRecord
from samestep.parallel.execution.buffers import Buffers
from samestep.parallel.execution.lockstep import LockstepRunner
from samestep.parallel.execution.owned_state import OwnedState, WorkerState
from samestep.parallel.execution.step_work import StepWork, step_work
from samestep.parallel.execution.unchanged import Unchanged
from samestep.parallel.gradients.clipping import clip
from samestep.parallel.gradients.compressed_edges import CompressedEdges
from samestep.parallel.gradients.layout import Layout, Piece
from samestep.parallel.gradients.ownership import Ownership
from samestep.parallel.gradients.reduction import TreeReduction
from samestep.parallel.gradients.sharded_update import ShardedUpdate
from samestep.parallel.gradients.slots import GradientSlots
from samestep.plan.plan import Plan
from samestep.schedule import actions
from samestep.system.device import precision_of, to_device
from samestep.transport.transport import Transport

StepSchedule = tuple[Sequence[int], actions.Schedule]  # the rows of each shard, and this worker's actions


@dataclass
class StepState:
    """The findings of one step so far."""

    number: int
    rows: list[int]  # of each shard of the step; where some were left out in loading, those that are there
    batch_rows: int = 0  # that the schedule is made for: their sum, if none was left out
    kept: dict[int, int] = field(default_factory=dict)  # rows of own shards of which some were left out
    stop_asked: bool = False
    batches: dict[int, Any] = field(default_factory=dict)
    losses: dict[int, ShardLoss] = field(default_factory=dict)
    facts: dict[int, LossFacts] = field(default_factory=dict)
    changed: dict[int, bytes] = field(default_factory=dict)  # by shard: which buffers it changed
    loss: float = math.nan
    scale: float = 1.0  # that the sum of the gradients lacks
    norm: float = math.nan  # of the batch's gradient, where it is clipped
    present: bytes = b""
    stop: bool = False
    seconds: list[float] = field(default_factory=list)  # that each worker computed
    known: Sequence[tuple[int, float]] = ()  # steps whose losses became known, and these; at meetings also earlier ones

    def note_changed(self, shard: int, changed: bytes) -> None:
        """Note the buffers that a shard changed, in any of the stages that it goes through."""
        known = self.changed.get(shard, changed)
        self.changed[shard] = changed if known == changed else bytes(a | b for a, b in zip(known, changed, strict=True))


@dataclass
class Executor:
    """One worker's parts, and how each action uses them."""

    model: nn.Module
    objective: Objective
    plan: Plan
    transport: Transport
    layout: Layout
    ownership: Sequence[Ownership]  # of the layout's entries
    gradients: GradientSlots
    reduction: TreeReduction
    buffers: Buffers
    unchanged: Unchanged
    update: ShardedUpdate
    scheduler: Any
    next_batch: Callable[[], Any]
    clip_grad_norm: float | None
    allow_nan: bool
    edges: CompressedEdges | None = None  # of the reduction tree, that a codec applies to
    whole: Callable[[], AbstractContextManager[None]] = nullcontext  # inside, sliced layers have their whole weights
    schedules: dict[tuple[int, bool], StepSchedule] = field(default_factory=dict)  # by rows and whether it is filling
    work: dict[int, StepWork] = field(default_factory=dict)  # by number of shards
    alike: Alike = field(default_factory=Alike)

    def step_schedule(self, rows: int, number: int) -> StepSchedule:
        """The shards and the actions of step `number`, of `rows` rows; kept for later steps of as many rows."""
        kind = rows, self.is_filling(number)
        found = self.schedules.get(kind)
        if found is None:
            sizes = [len(part) for part in shard_rows(rows, num_shards_of(rows, self.plan.numerics.shards))]
            found = self.schedules[kind] = sizes, self._schedule(len(sizes), number)
        return found

    # One method per action

    def load(self, action: actions.Load, state: StepState) -> None:
        work = self._work(state)
        state.batches = {shard: to_device(self.next_batch(), self.device) for shard in work.shards}
        self.gradients.begin_step(work.units)
        if self.edges is not None:
            self.edges.begin_step(len(state.rows))
        self.reduction.exchange.begin(len(state.rows))

    def forward(self, action: actions.Forward, state: StepState) -> None:
        shard = action.shard
        with self._precision(), self.unchanged.during_forward():
            random_streams.enter(self.plan.numerics.seed, "step", state.number, shard)
            self.buffers.begin_shard()
            loss = self.objective(self.model, state.batches.pop(shard), state.rows[shard])
        self._keep_loss(shard, loss, state)

    def backward(self, action: actions.Backward, state: StepState) -> None:
        shard, loss = action.shard, state.losses.pop(action.shard)
        self.gradients.begin_shard(shard, *self._work(state).folds[0][shard])
        self.objective.seeded(loss, state.batch_rows).backward()  # type: ignore[no-untyped-call]
        self.gradients.end_shard()
        state.changed[shard] = self.buffers.end_shard(shard)
        state.facts[shard] = loss.facts

    def lockstep(self, action: actions.Lockstep, state: StepState) -> None:
        active = [r for r in range(self.plan.workers) if self.plan.shards_of(r, len(state.rows))]
        runner = LockstepRunner(self.transport, active, self.buffers, self.plan.numerics.threads)
        runner.run([partial(self._forward_backward, shard, state) for shard in action.shards])

    def agree(self, action: actions.Agree, state: StepState) -> None:
        """Every worker learns every shard's facts; the exchange also publishes the partial gradients."""
        facts, present = dict[tuple[int, int], LossFacts](), 0
        own = WorkerRecord(
            stop=state.stop_asked,
            seconds=self.transport.timesheet.computing,
            present=bytes(self.gradients.present),
            facts={(state.number, shard): found for shard, found in state.facts.items()},
            buffers=self.buffers.record(state.changed, with_contents=self.transport.links is not None),
            kept=state.kept,
        )
        hosts, here = self.transport.hosts, self.transport.hosts[self.transport.rank]
        for rank, record in enumerate(self.alike.exchanged(own, self.transport, state.number)):
            state.stop |= record.stop
            state.seconds.append(record.seconds)
            present |= int.from_bytes(record.present, "little")
            facts |= record.facts
            state.rows = [record.kept.get(shard, own_rows) for shard, own_rows in enumerate(state.rows)]
            for shard, (changed, contents) in record.buffers.items():
                state.note_changed(shard, changed)
                if hosts[rank] != here:
                    self.buffers.receive(shard, changed, contents)
        state.present = present.to_bytes(len(self.layout.entries), "little")
        self._settle_loss([facts[state.number, shard] for shard in range(len(state.rows))], state)
        state.known = [(state.number, state.loss)]

    def reduce(self, action: actions.Reduce, state: StepState) -> None:
        self.reduction.exchange.finish()
        num_sets = self._work(state).num_sets
        self.transport.counted.moved += self.reduction.sum_pieces(len(state.rows), state.scale, num_sets)

    def merge_buffers(self, action: actions.MergeBuffers, state: StepState) -> None:
        self.buffers.merge([state.changed[shard] for shard in range(len(state.rows))], state.rows)

    def clip(self, action: actions.Clip, state: StepState) -> None:
        assert self.clip_grad_norm is not None
        state.norm = clip(self._owned_gradients(state), self.clip_grad_norm, self.transport.exchange)

    def step(self, action: actions.Update, state: StepState) -> None:
        self.update.step(partial(self.gradient, state))
        if self.scheduler is not None:
            self.scheduler.step()

    def publish(self, action: actions.Publish, state: StepState) -> None:
        self.gradients.drop()
        self.share_values()

    def share_values(self, *, everywhere: bool = False) -> None:
        """Let every worker that computes with a parameter see its value; `everywhere`: all others too."""
        self.reduction.exchange.publish()
        if everywhere:
            self.reduction.exchange.publish(everywhere=True)
        self.transport.fence()

    def gradient(self, state: StepState, piece: Piece) -> Tensor | None:
        """The summed gradient of an owned piece, 1-D; None when no shard had one."""
        if not any(state.present[i] for i in self.layout.names[piece.entry]):
            return None
        return self.reduction.total(piece)

    # What others ask of an executor, between steps

    @property
    def device(self) -> torch.device:
        """The device of this worker's computation."""
        return self.layout.entries[0].param.device

    def is_filling(self, step: int) -> bool:
        """Whether a step makes no update, because the gradients that it would use are still to come."""
        return False

    def settle(self) -> Sequence[tuple[int, float]]:
        """Steps whose losses not every worker knows yet, and these. All workers must call it."""
        return ()

    def report(self) -> dict[str, float]:
        """The bound of the sync policy, as the run has observed it. All workers must call it."""
        return {}

    def optimizers(self) -> list[tuple[ShardedUpdate, Any]]:
        """All optimizers of this worker, with their schedulers."""
        return [(self.update, self.scheduler)]

    def state(self) -> WorkerState:
        """The part of the run's state that this worker owns."""
        return OwnedState(self.layout, self.ownership, self.update, self.buffers, self.edges, self.transport)

    def entries_in(self, segment: int) -> Iterable[int]:
        """The entries of the layout whose gradients come from a segment."""
        return range(len(self.layout.entries))

    def is_last(self, segment: int) -> bool:
        """Whether the loss comes from a segment."""
        return True

    def wrap_recording(self, wrapper: Callable[[Callable[[Any], Any], Any], Any]) -> None:
        """Let `wrapper(record, batch)` stand in for recording the forward of a batch, which only a cut model needs."""

    # Parts of the actions

    def _schedule(self, num_shards: int, number: int) -> actions.Schedule:
        clips, filling = self.clip_grad_norm is not None, self.is_filling(number)
        grid = self.plan.grid(num_shards, [(False,)])
        return self.plan.schedule(grid, self.transport.rank, clip=clips, filling=filling)

    def _work(self, state: StepState) -> StepWork:
        work = self.work.get(len(state.rows))
        if work is None:
            work = step_work(self.plan, self.transport.rank, self.ownership, self.edges, len(state.rows))
            self.work[len(state.rows)] = work
        return work

    def _forward_backward(self, shard: int, state: StepState) -> None:
        self.forward(actions.Forward(shard), state)
        self.backward(actions.Backward(shard), state)

    def _keep_loss(self, shard: int, loss: ShardLoss, state: StepState) -> None:
        if not (math.isfinite(loss.sum) or self.allow_nan):
            raise not_finite(shard, loss.objective, ((one.name, one.param) for one in self.layout.entries))
        if not loss.objective.requires_grad:
            raise without_gradient(shard)
        state.losses[shard] = loss

    def _settle_loss(self, facts: Sequence[LossFacts], state: StepState) -> None:
        state.loss, state.scale = self.objective.batch_loss(facts, state.batch_rows, allow_nan=self.allow_nan)

    def _owned_gradients(self, state: StepState) -> list[tuple[Piece, Tensor]]:
        return [(p, g) for p, _ in self.update.targets if (g := self.gradient(state, p)) is not None]

    def _precision(self) -> AbstractContextManager[Any]:
        return precision_of(self.plan.numerics.precision, self.device)
