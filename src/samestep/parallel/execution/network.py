"""The network as one worker computes it: shards pass through its segments, and over the cuts between.

Every worker loads the rows of every shard that it touches, so nothing of a batch ever crosses a cut;
what does is the activations, and the state of the random generators, which each shard takes along:
dropout draws the same masks wherever the cuts are.
"""

import dataclasses
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from samestep.errors import JobRefused
from samestep.job.objective import Objective, ShardLoss
from samestep.numerics import random_streams
from samestep.parallel.cutting.cut import Cut, Region, Segment
from samestep.parallel.cutting.recording import NAMES, OtherAnswer, Value, batch_tensors
from samestep.parallel.cutting.slices import SlicedRegion
from samestep.parallel.execution.bundles import Bundles, Name
from samestep.parallel.execution.cell import Cell, Gradients
from samestep.parallel.execution.cut_recipe import Answers, CutRecipe
from samestep.parallel.execution.joint import JoinGroup, Joint, meeting_of
from samestep.parallel.gradients.deferred import DeferredGradients, deferring
from samestep.plan.plan import Plan
from samestep.system.nests import mapped
from samestep.transport.transport import Transport


@dataclass
class Passage:
    """A shard on its way through a stage."""

    batch: Any
    rows: int
    cut: Cut
    inputs: dict[int, Tensor]  # the batch's own tensors
    values: dict[int, Tensor]  # what later segments take, without graph
    needs: set[int] = field(default_factory=set)  # the values that need a gradient
    crossed: tuple[int, ...] = ()  # the values that came over the cut before the stage
    rng: random_streams.State | None = None  # where the shard's random streams stand
    grads: Gradients = field(default_factory=dict)
    cells: dict[int, Cell] = field(default_factory=dict)
    # by segment: values and streams, to compute it again
    before: dict[int, tuple[dict[int, Tensor], random_streams.State | None]] = field(default_factory=dict)

    def keep(self, number: int) -> None:
        """Forget the values that nothing after segment `number` wants."""
        keeps = self.cut.needed_after(number)
        self.values = {v: t for v, t in self.values.items() if v in keeps or v < self.cut.num_inputs}

    def turn(self, number: int, other: OtherAnswer, recipe: CutRecipe) -> None:
        """Go on in the record of the way that a guard has turned to. Raises JobRefused if that needs what is gone."""
        before, stage = self.cut, self.cut.segments[number].stage
        at = next(i for i, guard in enumerate(before.guards) if guard is other.call)
        self.cut = recipe.of(self.batch, (*before.answers[:at], json.dumps(other.answer)))
        rest = [segment for segment in self.cut.segments[number:] if segment.stage == stage]
        wanted = {value for segment in rest for value in segment.takes}
        wanted |= set(self.cut.crossings[stage] if stage < len(self.cut.crossings) else ())
        made = {value for segment in rest for value in segment.gives}
        if missing := wanted - made - self.values.keys():
            place = next(c.place for s in self.cut.segments for c in s.calls if missing & set(c.makes))
            raise JobRefused(
                f"forward asks for a tensor's value at {other.call.place}, finds {other.answer!r}, and goes on with a "
                f"tensor made at {place}, before the cut, that the other way does without: cut elsewhere, or use "
                "--plan data"
            ) from None

    def batch_now(self) -> Any:
        """The batch, as forward may have changed it in place."""
        if not self.cut.changed_inputs:
            return self.batch
        now = {id(self.inputs[i]): self.values[i] for i in self.cut.changed_inputs}
        return mapped(self.batch, lambda leaf: now.get(id(leaf), leaf))


class OtherWayTaken(Exception):
    """A guard has answered otherwise: the segment has to begin again, in the record of that way."""


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

    def begin(self, shard: int, stage: int, batch: Any, rows: int, answers: Answers = ()) -> Passage:
        """The shard's passage through a stage; what comes from the stage before is taken over.

        answers: of the guards in the stages before, where another worker has passed them.
        """
        passage = self.passages.get((shard, stage))
        if passage is None:
            previous = self.passages.get((shard, stage - 1))
            found = self.recipe.of(batch, answers) if previous is None else previous.cut
            inputs = dict(enumerate(batch_tensors(batch)))
            passage = Passage(batch, rows, found, inputs, dict(inputs))
            self.passages[shard, stage] = passage
            if stage == 0:
                passage.rng = random_streams.leave()  # its streams have just begun
            if previous is not None:
                crossing = passage.crossed = found.crossings[stage - 1]
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
        try:
            cell = Cell(segment, passage.values, passage.needs, self.recipe.model, found.windows)
        except OtherAnswer as other:
            passage.turn(number, other, self.recipe)
            raise OtherWayTaken from other
        passage.cells[number] = cell
        loss = None
        if self.is_last(number):
            made = mapped(found.result, lambda leaf: cell.local[leaf.index] if isinstance(leaf, Value) else leaf, NAMES)
            loss = objective.settle(made, passage.batch_now(), passage.rows)
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
        note = [needs, random_streams.pack(passage.rng)]
        if passage.cut.answers:  # which values these are depends on the way
            way = json.dumps([passage.cut.answers[: passage.cut.num_guards(stage)], crossing])
            note.append(torch.frombuffer(bytearray(way.encode()), dtype=torch.uint8))
        self.bundles.send(peer, Name(False, shard, stage), torch.cat(note), values)
        passage.values = {v: t for v, t in passage.values.items() if v < passage.cut.num_inputs}

    def receive(self, shard: int, stage: int, peer: int, batch: Any, rows: int) -> None:
        note, values = self.bundles.receive(peer, Name(False, shard, stage))
        needs, packed = note[: len(values)], note[len(values) :]
        size = random_streams.packed_size()
        way: Any = json.loads(packed[size:].numpy().tobytes()) if len(packed) > size else [(), None]
        passage = self.begin(shard, stage + 1, batch, rows, tuple(way[0]))
        wanted = passage.cut.crossings[stage]
        crossing = passage.crossed = wanted if way[1] is None else tuple(way[1])
        if not set(wanted) <= set(crossing):
            raise JobRefused(
                f"forward takes ways of which one wants more tensors over the cut before stage {stage + 1} than the "
                "other: cut elsewhere, or use --plan data"
            )
        passage.rng = random_streams.unpack(packed[:size])
        passage.values |= zip(crossing, values, strict=True)
        passage.needs |= {value for value, needed in zip(crossing, needs.tolist(), strict=True) if needed}

    def send_gradient(self, shard: int, stage: int, peer: int) -> None:
        passage = self.passages.pop((shard, stage + 1))
        grads = passage.grads
        present = torch.tensor([value in grads for value in passage.crossed], dtype=torch.uint8)
        found = [grads[value] for value in passage.crossed if value in grads]
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
        regions = [self._region(passage, number) for passage in passages]
        joint = self.joint[shards.start, number] = Joint(self.regions[number], meeting, self.transport)
        outputs = joint.forward(
            [passage.values[own.takes] for passage, own in zip(passages, regions, strict=True)],
            (self.plan.numerics.seed, "slice", step, shards.start),
            needs_grad=region.takes in self.structure.floats and region.takes >= self.structure.num_inputs,
        )
        for passage, own, output in zip(passages, regions, outputs, strict=True):
            passage.values[own.makes] = output
            passage.needs.add(own.makes)
            passage.keep(number)

    def slice_backward(self, number: int, shards: range) -> None:
        joint = self.joint.pop((shards.start, number))
        passages = [self.passages[shard, self.stage_of(number)] for shard in joint.meeting.own_shards]
        regions = [self._region(passage, number) for passage in passages]
        grads = [passage.grads.pop(own.makes, None) for passage, own in zip(passages, regions, strict=True)]
        for passage, own, grad in zip(passages, regions, joint.backward(grads), strict=False):
            of_later_uses = passage.grads.get(own.takes)
            passage.grads[own.takes] = grad if of_later_uses is None else of_later_uses + grad

    def _region(self, passage: Passage, number: int) -> Region:
        """The region in the record of a shard's own way."""
        found = passage.cut.segments[number].region
        assert found is not None, "all records have the same segments"
        return found

    def _meeting(self, number: int, shards: range, num_shards: int) -> JoinGroup:
        stage = self.plan.stages[self.segment(number).stage]
        held = {r: self.plan.shards_of(r, num_shards, self.segment(number).stage) for r in stage.workers}
        counts = dict(stage.slices)[self.regions[number].column.name]
        return meeting_of(self.transport.rank, stage.workers, counts, held, shards)
