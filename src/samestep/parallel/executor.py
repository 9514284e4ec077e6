"""The executor: one small method per kind of action. It decides nothing; the schedule does."""

import math
import struct
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from samestep import streams
from samestep.errors import Disagreement, JobRefused, LossNotFinite
from samestep.loss import Objective, ShardLoss
from samestep.parallel.buffers import Buffers
from samestep.parallel.clip import chunk_norms, clip_factor, total_norm
from samestep.parallel.gradients import Gradients
from samestep.parallel.layout import Layout, Piece, storage_order
from samestep.parallel.lockstep import Lockstep
from samestep.parallel.reduce import TreeReduction
from samestep.parallel.unchanged import Unchanged
from samestep.parallel.update import ShardedUpdate
from samestep.plan import Plan
from samestep.schedule import actions
from samestep.transport.base import Transport
from samestep.tree import local_plan, tree_sum

SHARD_FACTS = struct.Struct("<ddB")  # a shard's loss sum, its weight, whether it was a mean
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
    present: bytes = b""
    stop: bool = False


@dataclass
class Executor:
    """One worker's parts, and how each action uses them."""

    model: nn.Module
    objective: Objective
    plan: Plan
    transport: Transport
    layout: Layout
    gradients: Gradients
    reduction: TreeReduction | None  # None: this worker holds every shard
    buffers: Buffers
    unchanged: Unchanged
    update: ShardedUpdate
    scheduler: Any
    next_batch: Callable[[], Any]
    clip_grad_norm: float | None
    allow_nan: bool

    def load(self, action: actions.Load, state: StepState) -> None:
        own = self._own_shards(state)
        state.batches = {shard: self.next_batch() for shard in own}
        self.gradients.begin_step(own.start)

    def forward(self, action: actions.Forward, state: StepState) -> None:
        shard = action.shard
        streams.enter(self.plan.numerics.seed, "step", state.number, shard)
        self.buffers.begin_shard()
        with self._precision(), self.unchanged.during_forward():
            loss = self.objective(self.model, state.batches.pop(shard), state.rows[shard])
        if not (math.isfinite(loss.sum) or self.allow_nan):
            raise LossNotFinite(
                f"the loss of shard {shard} is {float(loss.objective.detach())}: lower the learning rate or look at "
                "the shard's rows; --allow-nan goes on"
            )
        if not loss.objective.requires_grad:
            raise JobRefused(
                f"the loss of shard {shard} does not depend on any trainable parameter: compute it from the model's "
                "outputs, without .detach(), .item() or torch.no_grad()"
            )
        state.losses[shard] = loss

    def backward(self, action: actions.Backward, state: StepState) -> None:
        shard, loss = action.shard, state.losses.pop(action.shard)
        own = self._own_shards(state)
        fold = local_plan(own, len(state.rows)).folds[shard - own.start]
        self.gradients.begin_shard(shard, fold)
        seed = 1.0 if self.objective.is_plain_sum else loss.seed(sum(state.rows))
        # The product's gradient is the seed, to the bit. Given to backward() it costs torch an import of sympy.
        (loss.objective * torch.tensor(seed, dtype=loss.objective.dtype)).backward()  # type: ignore[no-untyped-call]
        self.gradients.end_shard()
        state.changed[shard] = self.buffers.end_shard(shard)
        state.facts[shard] = (loss.sum, loss.weight, loss.is_mean)

    def lockstep(self, action: actions.Lockstep, state: StepState) -> None:
        active = [r for r in range(self.plan.workers) if self.plan.shards_of(r, len(state.rows))]
        together = Lockstep(self.transport, active, self.buffers, self.plan.numerics.threads)
        together.run([partial(self._forward_backward, shard, state) for shard in action.shards])

    def agree(self, action: actions.Agree, state: StepState) -> None:
        """Everybody learns every shard's facts; the exchange also publishes the partial gradients."""
        own = self._own_shards(state)
        record = bytes([state.stop_asked]) + bytes(self.gradients.present)
        record += b"".join(SHARD_FACTS.pack(*state.facts[shard]) + state.changed[shard] for shard in own)
        at = 1 + len(self.layout.entries)
        size = SHARD_FACTS.size + len(self.buffers.values)
        facts, present = [], 0
        for rank, other in enumerate(self.transport.exchange(record)):
            state.stop |= bool(other[0])
            present |= int.from_bytes(other[1:at], "little")
            for i, shard in enumerate(self.plan.shards_of(rank, len(state.rows))):
                part = other[at + i * size : at + (i + 1) * size]
                facts.append(SHARD_FACTS.unpack_from(part))
                state.changed[shard] = part[SHARD_FACTS.size :]
        state.present = present.to_bytes(len(self.layout.entries), "little")
        self._settle_loss(facts, state)

    def reduce(self, action: actions.Reduce, state: StepState) -> None:
        if self.reduction is not None:
            self.reduction.sum_pieces(len(state.rows), state.scale)
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
        owned = [(p, g) for p, _ in self.update.targets if (g := self._gradient(state, p)) is not None]
        record = b"".join(NORM.pack(*norm) for norm in chunk_norms(owned))
        found = b"".join(self.transport.exchange(record))
        factor = clip_factor(total_norm(list(NORM.iter_unpack(found))), self.clip_grad_norm)
        for _, grad in owned:
            grad.mul_(factor)

    def step(self, action: actions.Update, state: StepState) -> None:
        self.update.step(partial(self._gradient, state))
        if self.scheduler is not None:
            self.scheduler.step()

    def publish(self, action: actions.Publish, state: StepState) -> None:
        self.gradients.drop()
        self.transport.fence()

    def _forward_backward(self, shard: int, state: StepState) -> None:
        self.forward(actions.Forward(shard), state)
        self.backward(actions.Backward(shard), state)

    def _own_shards(self, state: StepState) -> range:
        return self.plan.shards_of(self.transport.rank, len(state.rows))

    def _gradient(self, state: StepState, piece: Piece) -> Tensor | None:
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
        if self.plan.numerics.precision == "bfloat16":
            return torch.autocast("cpu", dtype=torch.bfloat16)
        return nullcontext()
