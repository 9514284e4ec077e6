"""The executor: one small method per kind of action. It decides nothing; the schedule does."""

import math
import struct
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from samestep.errors import Disagreement, JobRefused, LossNotFinite
from samestep.job.objective import Objective, ShardLoss
from samestep.numerics import random_streams
from samestep.numerics.numerics import num_shards_of, shard_rows
from samestep.numerics.reduction_tree import local_plan, tree_sum
from samestep.parallel.execution.buffers import Buffers
from samestep.parallel.execution.lockstep import LockstepRunner
from samestep.parallel.execution.network import Network, precision_of
from samestep.parallel.execution.unchanged import Unchanged
from samestep.parallel.gradients.clipping import chunk_norms, clip_factor, total_norm
from samestep.parallel.gradients.compressed_edges import CompressedEdges, CompressedFold
from samestep.parallel.gradients.host_exchange import HostExchange
from samestep.parallel.gradients.layout import Layout, Piece, storage_order
from samestep.parallel.gradients.ownership import Ownership
from samestep.parallel.gradients.reduction import TreeReduction
from samestep.parallel.gradients.sharded_update import ShardedUpdate
from samestep.parallel.gradients.slots import GradientSlots
from samestep.plan.plan import Plan
from samestep.schedule import actions
from samestep.schedule.orders.written import written_order
from samestep.schedule.passes import schedule_of
from samestep.system.device import to_device
from samestep.transport.transport import Transport

SHARD_FACTS = struct.Struct("<ddB")  # a shard's loss sum, its weight, whether it was a mean
SECONDS = struct.Struct("<d")  # that a worker has computed in this step
NORM = struct.Struct("<IId")  # entry, chunk, norm


@dataclass
class StepState:
    """What one step has found out so far."""

    number: int
    rows: list[int]  # of each shard of the step
    stop_asked: bool = False
    batches: dict[int, Any] = field(default_factory=dict)
    losses: dict[int, ShardLoss] = field(default_factory=dict)
    facts: dict[int, tuple[float, float, bool]] = field(default_factory=dict)
    changed: dict[int, bytes] = field(default_factory=dict)
    loss: float = math.nan
    scale: float = 1.0
    norm: float = math.nan  # of the batch's gradient, where it is clipped
    present: bytes = b""
    stop: bool = False
    seconds: list[float] = field(default_factory=list)  # that each worker computed
    known: Sequence[tuple[int, float]] = ()  # losses of earlier steps too, where they are told at meetings only

    def note_changed(self, shard: int, changed: bytes) -> None:
        """Which buffers a shard changed, in any of the stages that it goes through."""
        known = self.changed.get(shard, bytes(len(changed)))
        self.changed[shard] = bytes(a | b for a, b in zip(known, changed, strict=True))


StepSchedule = tuple[Sequence[int], actions.Schedule]  # the rows of each shard, and this worker's actions


@dataclass
class Executor:
    """One worker's parts, and how each action uses them."""

    model: nn.Module
    objective: Objective
    plan: Plan
    transport: Transport
    layout: Layout
    homes: Sequence[Ownership]  # of the layout's entries
    gradients: GradientSlots
    reduction: TreeReduction | None  # None: this worker holds every shard
    buffers: Buffers
    unchanged: Unchanged
    update: ShardedUpdate
    scheduler: Any
    next_batch: Callable[[], Any]
    clip_grad_norm: float | None
    allow_nan: bool
    edges: CompressedEdges | None = None  # of the reduction tree that a codec applies to
    network: Network | None = None  # None: the whole model is one segment
    whole: Callable[[], AbstractContextManager[None]] = nullcontext  # inside, sliced layers have their whole weights
    schedules: dict[tuple[int, bool], StepSchedule] = field(default_factory=dict)  # by rows and whether it is filling

    def step_schedule(self, rows: int, number: int) -> StepSchedule:
        """The shards and the actions of step `number`, of `rows` rows; kept for later steps of as many rows."""
        kind = rows, self.is_filling(number)
        found = self.schedules.get(kind)
        if found is None:
            sizes = [len(part) for part in shard_rows(rows, num_shards_of(rows, self.plan.numerics.shards))]
            found = self.schedules[kind] = sizes, self._schedule(len(sizes), number)
        return found

    def _schedule(self, num_shards: int, number: int, stale: int = 0) -> actions.Schedule:
        plan, sliced = self.plan, [(False,)] if self.network is None else self.network.structure.sliced
        grid = plan.grid(num_shards, sliced)
        return schedule_of(
            grid,
            plan.order if isinstance(plan.order, str) else written_order(plan.order, grid, plan.numerics.shards),
            self.transport.rank,
            depth=plan.depth,
            clip=self.clip_grad_norm is not None,
            lockstep=plan.numerics.sync_batchnorm,
            stale=stale,
            filling=self.is_filling(number),
        )

    @property
    def device(self) -> torch.device:
        """Where this worker computes."""
        return self.layout.entries[0].param.device

    def load(self, action: actions.Load, state: StepState) -> None:
        shards, sets = len(state.rows), -(-len(state.rows) // self.plan.set_size(len(state.rows)))
        own = self.plan.touched(self.transport.rank, shards)
        state.batches = {shard: to_device(self.next_batch(), self.device) for shard in own}
        rank = self.transport.rank
        self.gradients.begin_step([h.units_of(rank, sets if h.is_slice else shards) for h in self.homes])
        if self.edges is not None:
            self.edges.begin_step(shards)
        if self.between is not None:
            self.between.begin(shards)

    def forward(self, action: actions.Forward, state: StepState) -> None:
        shard, network = action.shard, self.network
        with self._precision(), self.unchanged.during_forward():
            if network is None:
                random_streams.enter(self.plan.numerics.seed, "step", state.number, shard)
                self.buffers.begin_shard()
                loss = self.objective(self.model, state.batches.pop(shard), state.rows[shard])
            else:
                if action.segment == 0:
                    random_streams.enter(self.plan.numerics.seed, "step", state.number, shard)
                own = network.buffers[action.segment]
                self.buffers.begin_shard(own)
                found = network.forward(shard, action.segment, state.batches[shard], state.rows[shard], self.objective)
                state.note_changed(shard, self.buffers.end_shard(shard, own))
                if found is None:
                    return
                loss = found
        self._check_loss(shard, loss)
        state.losses[shard] = loss

    def recompute(self, action: actions.Recompute, state: StepState) -> None:
        assert self.network is not None
        own = self.network.buffers[action.segment]
        self.buffers.begin_shard(own)
        with self._precision():
            loss = self.network.recompute(action.shard, action.segment, self.objective)
        self.buffers.forget(own)
        if loss is not None:
            state.losses[action.shard] = loss

    def backward(self, action: actions.Backward, state: StepState) -> None:
        shard, network = action.shard, self.network
        loss = state.losses.pop(shard) if network is None or network.is_last(action.segment) else None
        stage = 0 if network is None else network.stage_of(action.segment)
        own = self.plan.shards_of(self.transport.rank, len(state.rows), stage)
        plan = local_plan(own, len(state.rows))
        edges = None if self.edges is None else CompressedFold(self.edges, plan.left, len(state.rows))
        later = self.plan.splits_backward(stage)
        self.gradients.begin_shard(shard, plan.folds[shard - own.start], edges, may_wait=later)
        objective = None if loss is None else self._seeded(loss, state)
        if network is None:
            assert objective is not None
            objective.backward()  # type: ignore[no-untyped-call]
            self.gradients.end_shard()
            state.changed[shard] = self.buffers.end_shard(shard)
        else:
            network.backward(shard, action.segment, objective)
            if later:
                self.gradients.pause_shard(action.segment)
            else:
                self.gradients.end_shard(network.entries[action.segment])
            self.buffers.forget(network.buffers[action.segment])  # forward may have run again in backward
        if loss is not None:
            state.facts[shard] = (loss.sum, loss.weight, loss.is_mean)

    def backward_weight(self, action: actions.BackwardWeight, state: StepState) -> None:
        assert self.network is not None
        self.gradients.resume_shard(action.shard, action.segment)
        self.network.backward_weight(action.shard, action.segment)
        self.gradients.end_shard(self.network.entries[action.segment])

    def send(self, action: actions.Send, state: StepState) -> None:
        assert self.network is not None
        self.network.send(action.shard, action.stage, action.peer)

    def receive(self, action: actions.Receive, state: StepState) -> None:
        assert self.network is not None
        shard = action.shard
        self.network.receive(shard, action.stage, action.peer, state.batches[shard], state.rows[shard])

    def send_gradient(self, action: actions.SendGradient, state: StepState) -> None:
        assert self.network is not None
        self.network.send_gradient(action.shard, action.stage, action.peer)

    def receive_gradient(self, action: actions.ReceiveGradient, state: StepState) -> None:
        assert self.network is not None
        self.network.receive_gradient(action.shard, action.stage, action.peer)

    def slice_forward(self, action: actions.SliceForward, state: StepState) -> None:
        assert self.network is not None
        with self._precision():
            self.network.slice_forward(action.segment, action.shards, len(state.rows), state.number)

    def slice_backward(self, action: actions.SliceBackward, state: StepState) -> None:
        assert self.network is not None
        sets = -(-len(state.rows) // self.plan.set_size(len(state.rows)))
        number = action.shards.start // self.plan.set_size(len(state.rows))
        self.gradients.begin_shard(number, local_plan(range(sets), sets).folds[number])
        self.network.slice_backward(action.segment, action.shards)
        self.gradients.end_shard(self.network.entries[action.segment])

    def lockstep(self, action: actions.Lockstep, state: StepState) -> None:
        active = [r for r in range(self.plan.workers) if self.plan.shards_of(r, len(state.rows))]
        together = LockstepRunner(self.transport, active, self.buffers, self.plan.numerics.threads)
        together.run([partial(self._forward_backward, shard, state) for shard in action.shards])

    def agree(self, action: actions.Agree, state: StepState) -> None:
        """Everybody learns every shard's facts; the exchange also publishes the partial gradients."""
        rank, shards, last = self.transport.rank, len(state.rows), max(0, len(self.plan.stages) - 1)
        record = bytes([state.stop_asked]) + SECONDS.pack(self.transport.timesheet.computing)
        record += bytes(self.gradients.present)
        record += b"".join(SHARD_FACTS.pack(*state.facts[s]) for s in self.plan.shards_of(rank, shards, last))
        far = self.transport.links is not None
        for shard in self.plan.touched(rank, shards):
            record += state.changed[shard] + (self.buffers.told(shard, state.changed[shard]) if far else b"")
        facts: dict[int, tuple[float, float, bool]] = {}
        present, entries = 0, len(self.layout.entries)
        for other, text in enumerate(self.transport.exchange(record)):
            state.stop |= bool(text[0])
            state.seconds.append(SECONDS.unpack_from(text, 1)[0])
            at = 1 + SECONDS.size + entries
            present |= int.from_bytes(text[at - entries : at], "little")
            for shard in self.plan.shards_of(other, shards, last):
                facts[shard] = SHARD_FACTS.unpack_from(text, at)
                at += SHARD_FACTS.size
            for shard in self.plan.touched(other, shards):
                changed = text[at : at + len(self.buffers.values)]
                at += len(changed)
                state.note_changed(shard, changed)
                if far:
                    is_near = self.transport.hosts[other] == self.transport.hosts[rank]
                    at = self.buffers.hear(shard, changed, text, at, keep=not is_near)
        state.present = present.to_bytes(entries, "little")
        self._settle_loss([facts[shard] for shard in range(shards)], state)
        state.known = [(state.number, state.loss)]

    def settle(self) -> Sequence[tuple[int, float]]:
        """Steps whose losses not everybody knows yet, and these. All workers must call it."""
        return ()

    def report(self) -> dict[str, float]:
        """The bound of the sync policy, as the run has seen it. All workers must call it."""
        return {}

    def optimizers(self) -> list[tuple[ShardedUpdate, Any]]:
        """All that this worker has, with their schedulers."""
        return [(self.update, self.scheduler)]

    def reduce(self, action: actions.Reduce, state: StepState) -> None:
        if self.reduction is not None:
            shards = len(state.rows)
            if self.between is not None:
                self.between.finish()
            self.reduction.sum_pieces(shards, state.scale, -(-shards // self.plan.set_size(shards)))
            self.transport.counted.moved += self.reduction.read[shards]
            return
        for entry, _ in self.layout.owners():
            total = self.gradients.total(entry)
            if state.scale != 1.0:
                total.mul_(state.scale)
            for alias in self.layout.aliases(entry):
                other = self.gradients.total(alias)
                total.add_(other.mul_(state.scale) if state.scale != 1.0 else other)

    def merge_buffers(self, action: actions.MergeBuffers, state: StepState) -> None:
        self.buffers.merge([state.changed[shard] for shard in range(len(state.rows))], state.rows)

    def clip(self, action: actions.Clip, state: StepState) -> None:
        assert self.clip_grad_norm is not None
        owned = [(p, g) for p, _ in self.update.targets if (g := self.gradient(state, p)) is not None]
        record = b"".join(NORM.pack(*norm) for norm in chunk_norms(owned))
        found = b"".join(self.transport.exchange(record))
        state.norm = total_norm(list(NORM.iter_unpack(found)))
        factor = clip_factor(state.norm, self.clip_grad_norm)
        for _, grad in owned:
            grad.mul_(factor)

    def step(self, action: actions.Update, state: StepState) -> None:
        self.update.step(partial(self.gradient, state))
        if self.scheduler is not None:
            self.scheduler.step()

    def publish(self, action: actions.Publish, state: StepState) -> None:
        self.gradients.drop()
        if self.network is not None:
            self.network.clear()
        self.share_values()

    def share_values(self, *, everywhere: bool = False) -> None:
        """Let everybody who computes with a parameter see its value; `everywhere`: all others too."""
        if self.between is not None:
            self.between.publish()
            if everywhere:
                self.between.publish(everywhere=True)
        self.transport.fence()

    def is_filling(self, step: int) -> bool:
        """Whether a step makes no update, because the gradients that it would use are still to come."""
        return False

    def under_way(self) -> Iterator[tuple[str, Tensor, int, bool]]:
        """Gradients that no update has used yet, of the owned pieces, as (label, value, start, whether it is whole).
        All workers must call it."""
        return iter(())

    @property
    def between(self) -> HostExchange | None:
        return None if self.reduction is None else self.reduction.between

    def _forward_backward(self, shard: int, state: StepState) -> None:
        self.forward(actions.Forward(shard), state)
        self.backward(actions.Backward(shard), state)

    def _check_loss(self, shard: int, loss: ShardLoss) -> None:
        if not (math.isfinite(loss.sum) or self.allow_nan):
            bad = next((one.name for one in self.layout.entries if not bool(one.param.isfinite().all())), None)
            cure = "lower the learning rate or look at the shard's rows"
            if bad is not None:  # the shard is not to blame
                cure = (
                    f"its rows are not the cause, {bad} is not finite since an earlier step's update; lower the "
                    "learning rate, or let `samestep verify JOB --steps N` name the gradient that was not"
                )
            raise LossNotFinite(
                f"the loss of shard {shard} is {float(loss.objective.detach())}: {cure}; --allow-nan goes on"
            )
        if not loss.objective.requires_grad:
            raise JobRefused(
                f"the loss of shard {shard} does not depend on any trainable parameter: compute it from the model's "
                "outputs, without .detach(), .item() or torch.no_grad()"
            )

    def _seeded(self, loss: ShardLoss, state: StepState) -> Tensor:
        """The objective times its share of the batch's.

        The product's gradient is the seed, to the bit. Given to backward() it costs torch an import of sympy.
        """
        seed = 1.0 if self.objective.is_plain_sum else loss.seed(sum(state.rows))
        return loss.objective * torch.tensor(seed, dtype=loss.objective.dtype)

    def gradient(self, state: StepState, piece: Piece) -> Tensor | None:
        """The summed gradient of an owned piece, 1-D; None when no shard had one."""
        if not any(state.present[i] for i in (piece.entry, *self.layout.aliases(piece.entry))):
            return None
        if self.reduction is not None:
            return self.reduction.total(piece)
        return storage_order(self.gradients.total(piece.entry))

    def _settle_loss(self, facts: Sequence[tuple[float, float, bool]], state: StepState) -> None:
        """The batch's loss, and the factor that the summed gradient still lacks."""
        kinds = {bool(is_mean) for _, _, is_mean in facts}
        if len(kinds) > 1:
            raise Disagreement("some shards returned a mean loss and others a (sum, weight) pair: return one of them")
        weight = 1.0 if self.objective.is_plain_sum else tree_sum([weight for _, weight, _ in facts])
        total = tree_sum([value for value, _, _ in facts])
        if weight == 0.0 and not self.allow_nan:
            raise LossNotFinite(
                "the loss weights of all shards are 0: no row of this batch counts; --allow-nan goes on"
            )
        state.loss = total / weight if weight else math.nan
        if kinds == {False} and not self.objective.is_plain_sum:
            state.scale = sum(state.rows) / weight if weight else math.nan

    def _precision(self) -> AbstractContextManager[Any]:
        return precision_of(self.plan.numerics.precision, self.device)
