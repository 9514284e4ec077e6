"""The network as one worker computes it: shards pass through its segments, and over the cuts between.

Every worker loads the rows of every shard that it touches, so nothing of a batch ever crosses a cut;
what does is the activations, and the state of the random generators, which each shard takes along:
dropout draws the same masks wherever the cuts are.
"""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from samestep.errors import JobRefused
from samestep.job.objective import Objective, ShardLoss
from samestep.numerics import random_streams
from samestep.parallel.cutting.cut import Cut, Segment, cut
from samestep.parallel.cutting.recorder import record
from samestep.parallel.cutting.recording import Value, batch_tensors, signature
from samestep.parallel.cutting.slices import SlicedRegion
from samestep.parallel.execution.bundles import Bundles, Name
from samestep.parallel.execution.cell import Cell, Gradients
from samestep.parallel.execution.joint import JoinGroup, Joint, meeting_of
from samestep.parallel.gradients.deferred import DeferredGradients, deferring
from samestep.plan.plan import Plan
from samestep.system.device import precision_of
from samestep.transport.transport import Transport


@dataclass
class Passage:
    """A shard on its way through a stage."""

    batch: Any
    rows: int
    cut: Cut
    values: dict[int, Tensor]  # what later segments take, without graph
    needs: set[int] = field(default_factory=set)  # the values that need a gradient
    rng: random_streams.State | None = None  # where the shard's random streams stand
    grads: Gradients = field(default_factory=dict)
    cells: dict[int, Cell] = field(default_factory=dict)
    # by segment: values and streams, to compute it again
    before: dict[int, tuple[dict[int, Tensor], random_streams.State | None]] = field(default_factory=dict)

    def keep(self, number: int) -> None:
        """Forget the values that nothing after segment `number` wants."""
        keeps = self.cut.needed_after(number)
        self.values = {v: t for v, t in self.values.items() if v in keeps or v < self.cut.num_inputs}


@dataclass
class CutRecipe:
    """How to record and cut the forward for a batch of any shape."""

    model: nn.Module
    objective: Objective
    starts: Sequence[str]
    sliced: Mapping[str, Sequence[int]]
    known: dict[str, Cut]
    precision: str = "float32"

    def of(self, batch: Any) -> Cut:
        """Raises JobRefused when a batch takes another way than the first one did."""
        name = signature(batch)
        if name not in self.known:
            here = random_streams.leave()
            with untouched_buffers(self.model), precision_of(self.precision, next(self.model.parameters()).device):
                recording = record(self.model, self.objective.run, batch, self.starts, list(self.sliced))
            random_streams.resume(here)
            found = cut(recording, self.model, 1 + len(self.starts), self.sliced)
            first = next(iter(self.known.values()), found)
            if not found.has_same_segments(first):
                raise JobRefused(
                    f"forward takes another way through the layers for a batch of {name} than for the first batch: "
                    "a cut forward needs one way for all; use --plan data, or make forward the same for all shapes"
                )
            self.known[name] = found
        return self.known[name]


@contextmanager
def untouched_buffers(model: nn.Module) -> Iterator[None]:
    """Inside, buffers are copies; what happens to them is forgotten."""
    bound = [(m, name, b) for m in model.modules() for name, b in m._buffers.items() if b is not None]
    for module, name, buffer in bound:
        module._buffers[name] = buffer.clone()
    try:
        yield
    finally:
        for module, name, buffer in bound:
            module._buffers[name] = buffer


@dataclass
class Network:
    """One worker's part of a cut network."""

    plan: Plan
    transport: Transport
    bundles: Bundles
    recipe: CutRecipe
    regions: Mapping[int, SlicedRegion]  # by segment
    entries: Sequence[Sequence[int]]  # per segment: the layout's entries that live there
    buffers: Sequence[Sequence[int]]  # per segment: the buffers that live there
    recompute_stages: Sequence[bool]
    passages: dict[tuple[int, int], Passage] = field(default_factory=dict)  # by shard and stage
    deferred: dict[tuple[int, int], DeferredGradients] = field(default_factory=dict)  # by shard and segment
    joint: dict[tuple[int, int], Joint] = field(default_factory=dict)  # by first shard of a set and segment

    @property
    def structure(self) -> Cut:
        """The cut of the first batch; all others go the same way."""
        return next(iter(self.recipe.known.values()))

    def segment(self, number: int) -> Segment:
        return self.structure.segments[number]

    def stage_of(self, number: int) -> int:
        return self.segment(number).stage

    def is_last(self, number: int) -> bool:
        return number == len(self.structure.segments) - 1

    def begin(self, shard: int, stage: int, batch: Any, rows: int) -> Passage:
        """The shard's passage through a stage; what comes from the stage before is taken over."""
        passage = self.passages.get((shard, stage))
        if passage is None:
            found = self.recipe.of(batch)
            passage = Passage(batch, rows, found, dict(enumerate(batch_tensors(batch))))
            self.passages[shard, stage] = passage
            if stage == 0:
                passage.rng = random_streams.leave()  # its streams have just begun
            previous = self.passages.get((shard, stage - 1))
            if previous is not None:
                crossing = found.crossings[stage - 1]
                passage.values |= {value: previous.values[value] for value in crossing}
                passage.needs = previous.needs & set(crossing)
                passage.rng = previous.rng
        return passage

    def forward(self, shard: int, number: int, batch: Any, rows: int, objective: Objective) -> ShardLoss | None:
        """Through a dense segment; the loss comes from the last one."""
        stage = self.stage_of(number)
        passage = self.begin(shard, stage, batch, rows)
        if self.recompute_stages[stage]:
            passage.before[number] = dict(passage.values), passage.rng
        loss = self._through(passage, number, objective)
        if self.recompute_stages[stage]:
            del passage.cells[number]
        passage.rng = random_streams.leave()
        passage.keep(number)
        return loss

    def recompute(self, shard: int, number: int, objective: Objective) -> ShardLoss | None:
        """The same forward once more, for the backward that follows."""
        passage = self.passages[shard, self.stage_of(number)]
        values, rng = passage.before.pop(number)
        again = dataclasses.replace(passage, values=values, needs=set(passage.needs), rng=rng, cells=passage.cells)
        return self._through(again, number, objective)

    def _through(self, passage: Passage, number: int, objective: Objective) -> ShardLoss | None:
        if passage.rng is not None:
            random_streams.resume(passage.rng)
        found, segment = passage.cut, passage.cut.segments[number]
        cell = passage.cells[number] = Cell(segment, passage.values, passage.needs, self.recipe.model)
        loss = None
        if self.is_last(number):
            made = pytree.tree_map(
                lambda leaf: cell.local[leaf.index] if isinstance(leaf, Value) else leaf, found.result
            )
            loss = objective.settle(made, passage.batch, passage.rows)
        cell.settle()
        return loss

    def backward(self, shard: int, number: int, objective: Tensor | None) -> None:
        stage = self.stage_of(number)
        self.hand_back(shard, stage)
        passage = self.passages[shard, stage]
        deferred = DeferredGradients() if self.plan.splits_backward(stage) else None
        with deferring(deferred):
            passage.cells.pop(number).backward(passage.grads, objective)
        if deferred is not None:
            self.deferred[shard, number] = deferred

    def backward_weight(self, shard: int, number: int) -> None:
        self.deferred.pop((shard, number)).compute()

    def clear(self) -> None:
        """At the end of a step."""
        self.passages.clear()
        self.deferred.clear()

    def hand_back(self, shard: int, stage: int) -> None:
        """Take over the gradients from the same worker's passage through the next stage."""
        following = self.passages.get((shard, stage + 1))
        if following is not None:
            self.passages[shard, stage].grads |= following.grads
            del self.passages[shard, stage + 1]

    # What crosses a cut: the values, which of them need a gradient, where the random streams stand.

    def send(self, shard: int, stage: int, peer: int) -> None:
        passage = self.passages[shard, stage]
        crossing = passage.cut.crossings[stage]
        assert passage.rng is not None, "a shard that leaves a stage has been through it"
        needs = torch.tensor([value in passage.needs for value in crossing], dtype=torch.uint8)
        values = [passage.values[value] for value in crossing]
        self.bundles.send(peer, Name(False, shard, stage), torch.cat([needs, random_streams.pack(passage.rng)]), values)
        passage.values = {v: t for v, t in passage.values.items() if v < passage.cut.num_inputs}

    def receive(self, shard: int, stage: int, peer: int, batch: Any, rows: int) -> None:
        passage = self.begin(shard, stage + 1, batch, rows)
        crossing = passage.cut.crossings[stage]
        note, values = self.bundles.receive(peer, Name(False, shard, stage))
        needs, passage.rng = note[: len(crossing)], random_streams.unpack(note[len(crossing) :])
        passage.values |= zip(crossing, values, strict=True)
        passage.needs |= {value for value, needed in zip(crossing, needs.tolist(), strict=True) if needed}

    def send_gradient(self, shard: int, stage: int, peer: int) -> None:
        passage = self.passages.pop((shard, stage + 1))
        grads = passage.grads
        crossing = passage.cut.crossings[stage]
        present = torch.tensor([value in grads for value in crossing], dtype=torch.uint8)
        found = [grads[value] for value in crossing if value in grads]
        self.bundles.send(peer, Name(True, shard, stage), present, found)

    def receive_gradient(self, shard: int, stage: int, peer: int) -> None:
        passage = self.passages[shard, stage]
        present, grads = self.bundles.receive(peer, Name(True, shard, stage))
        there = [v for v, flag in zip(passage.cut.crossings[stage], present.tolist(), strict=True) if flag]
        passage.grads |= zip(there, grads, strict=True)

    # Sliced segments: every worker of the stage meets, with the rows of its shards and with its slices.

    def slice_forward(self, number: int, shards: range, num_shards: int, step: int) -> None:
        region, stage = self.regions[number].region, self.segment(number).stage
        meeting = self._meeting(number, shards, num_shards)
        passages = [self.passages[shard, stage] for shard in meeting.own_shards]
        joint = self.joint[shards.start, number] = Joint(self.regions[number], meeting, self.transport)
        outputs = joint.forward(
            [passage.values[region.takes] for passage in passages],
            (self.plan.numerics.seed, "slice", step, shards.start),
            needs_grad=region.takes in self.structure.floats and region.takes >= self.structure.num_inputs,
        )
        for passage, output in zip(passages, outputs, strict=True):
            passage.values[region.makes] = output
            passage.needs.add(region.makes)
            passage.keep(number)

    def slice_backward(self, number: int, shards: range) -> None:
        region, stage = self.regions[number].region, self.segment(number).stage
        joint = self.joint.pop((shards.start, number))
        passages = [self.passages[shard, stage] for shard in joint.meeting.own_shards]
        found = joint.backward([passage.grads.pop(region.makes, None) for passage in passages])
        for passage, grad in zip(passages, found, strict=False):
            of_later_uses = passage.grads.get(region.takes)
            passage.grads[region.takes] = grad if of_later_uses is None else of_later_uses + grad

    def _meeting(self, number: int, shards: range, num_shards: int) -> JoinGroup:
        stage = self.plan.stages[self.segment(number).stage]
        held = {r: self.plan.shards_of(r, num_shards, self.segment(number).stage) for r in stage.workers}
        counts = dict(stage.slices)[self.regions[number].column.name]
        return meeting_of(self.transport.rank, stage.workers, counts, held, shards)
