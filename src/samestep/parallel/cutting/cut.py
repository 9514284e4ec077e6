"""Cut a recorded forward into segments: at the stages' first modules, and around every sliced layer.

    calls      embed  add  fc1   relu  fc2   add | block.3  norm  head  loss
                           sliced      sliced    ^ first of stage 1
    segments   0           1                 2   | 3
               dense       region            dense  dense

A sliced layer is a segment by itself, a *region*. Elementwise calls that follow it, up to a sliced Linear
that takes nothing else, stay in the slices' layout (column, then row: Shoeybi et al. 2019, section 3), so
that only the region's two ends are exchanged. Every stage begins and ends dense.
"""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from samestep.errors import JobRefused, PlanRefused
from samestep.parallel.cutting.attention import Attention, attention_of
from samestep.parallel.cutting.bonds import bonds_of, state_of
from samestep.parallel.cutting.recording import (
    NAMES,
    Call,
    NamedTensor,
    Recording,
    SavedForBackward,
    Storage,
    Value,
    attribute_of,
)
from samestep.parallel.cutting.windows import Window
from samestep.system.nests import walk

ELEMENTWISE = {
    nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.ELU, nn.GELU, nn.SiLU, nn.Mish, nn.Tanh, nn.Sigmoid, nn.Softplus,
    nn.Hardtanh, nn.Hardswish, nn.Identity, nn.Dropout, nn.AlphaDropout,
    F.relu, F.gelu, F.silu, F.leaky_relu, F.elu, F.dropout, F.tanh, F.sigmoid,
    torch.relu, torch.tanh, torch.sigmoid, Tensor.relu, Tensor.tanh, Tensor.sigmoid,
}  # fmt: skip
"""Modules and functions that treat every element by itself, whatever its place."""


@dataclass(frozen=True)
class Region:
    """One sliced segment: y_k = between(column_k(x)), and with `row` the sum over k of row_k(y_k).

    An attention layer is a region alone.
    """

    column: str
    between: tuple[Call, ...]
    row: str | None
    takes: int
    makes: int
    attention: Attention | None = None
    saved: tuple[SavedForBackward, ...] = ()  # of one shard, uncut

    @property
    def is_summed(self) -> bool:
        """True if its slices' outputs are summed, False if they are columns side by side."""
        return self.row is not None or self.attention is not None

    @property
    def layers(self) -> tuple[str, ...]:
        return (self.column,) if self.row is None else (self.column, self.row)

    @property
    def column_output(self) -> int:
        """The value that the column layer itself makes."""
        return next(iter(self.between[0].takes)) if self.between else self.makes


@dataclass(frozen=True)
class Segment:
    """Consecutive calls of one stage, or a region."""

    stage: int
    calls: tuple[Call, ...]
    region: Region | None
    takes: tuple[int, ...]  # values that earlier segments made
    gives: tuple[int, ...]  # values made here that later segments take, or that forward returns
    changes: frozenset[int]  # values taken that are changed in place here; those needed later are given, too
    views: tuple[tuple[int, int], ...] = ()  # (value, of value): changed ones that show the same elements

    @property
    def is_sliced(self) -> bool:
        return self.region is not None


@dataclass(frozen=True)
class Cut:
    """A forward in segments."""

    segments: tuple[Segment, ...]
    crossings: tuple[tuple[int, ...], ...]  # per cut between stages: the values that cross it
    result: Any
    shapes: Mapping[int, torch.Size]
    nbytes: Mapping[int, int]
    storages: Mapping[int, Storage]  # by value
    windows: Mapping[int, Window]  # by value
    floats: frozenset[int]
    num_inputs: int
    homes: Mapping[str, int]  # the segment of every parameter and buffer; what forward does not use is near the others
    used: frozenset[str]  # parameters and buffers that forward uses

    @property
    def sliced(self) -> list[tuple[bool, ...]]:
        """Per stage, which segments are sliced."""
        return [
            tuple(segment.is_sliced for segment in self.segments if segment.stage == stage)
            for stage in range(1 + self.segments[-1].stage)
        ]

    def needed_after(self, number: int) -> frozenset[int]:
        """The values that are needed after segment `number`: by later segments of its stage, or over the cut."""
        stage = self.segments[number].stage
        later = [s for s in self.segments[number + 1 :] if s.stage == stage]
        wanted = {value for segment in later for value in segment.takes}
        return frozenset(wanted | set(self.crossings[stage] if stage < len(self.crossings) else ()))

    @cached_property
    def guards(self) -> tuple[Call, ...]:
        """The calls that ask for a tensor's value, in order."""
        return tuple(call for segment in self.segments for call in segment.calls if call.is_guard)

    @cached_property
    def changed_inputs(self) -> frozenset[int]:
        """The batch's tensors that forward changes in place."""
        return frozenset().union(*(segment.changes for segment in self.segments)) & frozenset(range(self.num_inputs))

    @cached_property
    def answers(self) -> tuple[str, ...]:
        """Answers of the guards, as JSON."""
        return tuple(json.dumps(guard.expected) for guard in self.guards)

    def num_guards(self, stage: int) -> int:
        """The number of guards in the stages up to one."""
        return sum(guard.stage <= stage for guard in self.guards)

    def differs_from(self, other: "Cut") -> str:
        """Reason why the segments are others, or have other parameters; empty if they are the same."""
        ways = [[(s.stage, s.region and s.region.layers) for s in c.segments] for c in (self, other)]
        if ways[0] != ways[1]:
            return "where the sliced layers are reached in another order"
        for name in sorted(self.used):
            if self.homes[name] != other.homes[name]:
                stages = [c.segments[c.homes[name]].stage for c in (self, other)]
                return f"which uses {name} in stage {stages[0]} and not in stage {stages[1]}"
        return ""


def cut(recording: Recording, model: nn.Module, num_stages: int, sliced: Mapping[str, Sequence[int]]) -> Cut:
    """Cut a recording; `sliced` has the slices of each sliced layer, per worker.

    Raises PlanRefused for stages that forward never reaches, JobRefused for what cannot be cut.
    """
    if len(recording.entered) != num_stages - 1:
        raise PlanRefused(
            f"forward begins only {1 + len(recording.entered)} of {num_stages} stages "
            f"(after the first: {', '.join(recording.entered) or 'none'}): name layers that it calls"
        )
    result_values = values_in(recording.result)
    pieces = list(_pieces(_with_regions(recording, result_values, model, sliced), num_stages))
    made = [frozenset(v for call in piece for v in _makes(call)) for _, piece in pieces]
    taken = [frozenset(v for call in piece for v in _takes(call)) for _, piece in pieces]
    taken[-1] |= result_values
    inputs = frozenset(range(recording.num_inputs))
    segments = list[Segment]()
    later = frozenset[int]()  # what later segments take
    for i, (stage, piece) in reversed(list(enumerate(pieces))):
        region = piece[0] if piece and isinstance(piece[0], Region) else None
        calls = tuple(call for call in piece if isinstance(call, Call))
        earlier = frozenset().union(*made[:i])
        changed = frozenset(v for call in calls for v in call.changes) & (earlier | inputs) & (taken[i] | later)
        changed, views = _with_bases(changed, recording, earlier | inputs, calls)
        gives = (changed & later) | (made[i] & (later | (result_values if i == len(pieces) - 1 else frozenset())))
        takes = (taken[i] & earlier) | changed
        segments.insert(0, Segment(stage, calls, region, tuple(sorted(takes)), tuple(sorted(gives)), changed, views))
        later |= taken[i] | changed
    crossings = []
    for p in range(num_stages - 1):
        taken_later = {v for s in segments if s.stage > p for v in s.takes}
        crossings.append(tuple(sorted({v for s in segments if s.stage <= p for v in s.gives} & taken_later)))
    found = Cut(
        tuple(segments),
        tuple(crossings),
        recording.result,
        recording.shapes,
        recording.nbytes | {-1 - value: nbytes for value, nbytes in recording.nbytes.items()},  # sums without bias
        recording.storages
        | {-1 - value: Storage(-1 - storage.number, storage.nbytes) for value, storage in recording.storages.items()},
        recording.windows,
        frozenset(recording.floats),
        recording.num_inputs,
        *_homes(segments, model),
    )
    _check_grad_mode(found)
    _check_bonds(found, recording, model)
    return found


def _homes(segments: Sequence[Segment], model: nn.Module) -> tuple[dict[str, int], frozenset[str]]:
    """The segment of every parameter and buffer, and which of them forward uses."""
    used: dict[int, int] = {}
    for i, segment in enumerate(segments):
        for call in segment.calls:
            for _, tensor in state_of(call, model):
                used.setdefault(id(tensor), i)
    for i, segment in enumerate(segments):  # after the calls: one of them adds a region's bias
        for layer in segment.region.layers if segment.region else ():
            for tensor in model.get_submodule(layer).parameters():
                used.setdefault(id(tensor), i)
    homes, names = dict[str, int](), list[str]()
    for prefix, module in model.named_modules(remove_duplicate=False):
        for local, state in [*module._parameters.items(), *module._buffers.items()]:
            name = f"{prefix}.{local}" if prefix else local
            names.append(name)
            if state is not None and id(state) in used:
                homes[name] = used[id(state)]
    found = frozenset(homes)
    for name in names:
        if name not in found:
            near = max(found, key=partial(_nearness, name), default="")
            home = homes.get(near, 0)
            homes[name] = (
                home - segments[home].is_sliced
            )  # a dense one is before it: in slices, no shard would count it
    return homes, found


def _nearness(name: str, other: str) -> tuple[int, int]:
    """How near two parameters are: the modules that hold both, then the distance between blocks of one list."""
    ours, theirs = name.split("."), other.split(".")
    same = next((i for i, (a, b) in enumerate(zip(ours, theirs, strict=False)) if a != b), min(len(ours), len(theirs)))
    parts = ours[same : same + 1] + theirs[same : same + 1]
    return same, -abs(int(parts[0]) - int(parts[1])) if len(parts) == 2 and all(map(str.isdigit, parts)) else -1_000_000


def values_in(tree: Any) -> frozenset[int]:
    return frozenset(leaf.index for _, leaf in walk(tree, NAMES) if isinstance(leaf, Value))


def _makes(call: Call | Region) -> Iterable[int]:
    return call.makes if isinstance(call, Call) else (call.makes,)


def _takes(call: Call | Region) -> Iterable[int]:
    return call.takes if isinstance(call, Call) else (call.takes,)


def _pieces(calls: Sequence[tuple[int, Call | Region]], num_stages: int) -> Iterator[tuple[int, list[Call | Region]]]:
    """(stage, calls) of every segment; a dense one, maybe empty, is between two regions and at a stage's ends."""
    for stage in range(num_stages):
        dense: list[Call | Region] = []
        for number, call in calls:
            if number != stage:
                continue
            if isinstance(call, Region):
                yield stage, dense
                yield stage, [call]
                dense = []
            else:
                dense.append(call)
        yield stage, dense


def _with_regions(
    recording: Recording, result: frozenset[int], model: nn.Module, sliced: Mapping[str, Sequence[int]]
) -> list[tuple[int, Call | Region]]:
    """(stage, call) of every call; those of sliced layers, and those in the slices' layout, are replaced by regions."""
    calls, found = recording.calls, list[tuple[int, Call | Region]]()
    i = 0
    while i < len(calls):
        call = calls[i]
        if not (isinstance(call.what, str) and call.what in sliced):
            found.append((call.stage, call))
            i += 1
            continue
        if isinstance(model.get_submodule(call.what), nn.MultiheadAttention):
            last, region = i, _attention_region(call, recording, result)
        else:
            last, region = _region_from(i, calls, result, model, sliced)
        found.append((call.stage, region))
        bias = f"{region.row}.bias" if region.row else f"{call.what}.out_proj.bias"
        if region.is_summed and attribute_of(model, bias) is not None:  # the sum without it is a value of our own
            found[-1] = call.stage, replace(region, makes=-1 - region.makes)
            arguments: Any = ((Value(-1 - region.makes), NamedTensor(bias)), {})
            after = Call(torch.add, arguments, (region.makes,), frozenset(), call.stage, calls[last].place)
            found.append((call.stage, after))
        i = last + 1
    return found


def _attention_region(call: Call, recording: Recording, result: frozenset[int]) -> Region:
    wanted = result.union(*(other.takes for other in recording.calls))
    asked = attention_of(call, recording.shapes, wanted)
    if isinstance(asked, str):
        raise JobRefused(f"layer {call} cannot be cut by heads (called at {call.place}): {asked}; leave it whole")
    return Region(str(call.what), (), None, asked.takes, call.makes[0], asked, call.saved)


def _region_from(
    at: int, calls: Sequence[Call], result: frozenset[int], model: nn.Module, sliced: Mapping[str, Sequence[int]]
) -> tuple[int, Region]:
    """The position of the last call of the region that begins with calls[at], and the region."""
    call = calls[at]
    if len(call.takes) != 1 or len(call.makes) != 1:
        raise JobRefused(f"layer {call} takes {len(call.takes)} tensors (called at {call.place}); leave it whole")
    last = _row_layer(calls, at, result, model, sliced)
    inside = calls[at : 1 + (at if last is None else last)]
    row = None if last is None else str(calls[last].what)
    kept = tuple(part for one in inside for part in one.saved)
    between = tuple(inside[1:-1])
    return at + len(inside) - 1, Region(
        str(call.what), between, row, next(iter(call.takes)), inside[-1].makes[0], None, kept
    )


def _row_layer(
    calls: Sequence[Call], at: int, result: frozenset[int], model: nn.Module, sliced: Mapping[str, Sequence[int]]
) -> int | None:
    """The position of the sliced Linear that takes what calls[at] makes, elementwise calls between; or None."""
    column = calls[at].what
    assert isinstance(column, str)
    if type(model.get_submodule(column)) is not nn.Linear:
        return None
    value = calls[at].makes[0]
    for i in range(at + 1, len(calls)):
        call = calls[i]
        users = [j for j, other in enumerate(calls) if value in other.takes]
        if users != [i] or value in result or len(call.takes) != 1 or len(call.makes) != 1 or call.names:
            return None
        if call.stage != calls[at].stage:
            return None
        if isinstance(call.what, str) and call.what in sliced:
            same = list(sliced[call.what]) == list(sliced[column])
            return i if same and type(model.get_submodule(call.what)) is nn.Linear else None
        kind = type(model.get_submodule(call.what)) if isinstance(call.what, str) else call.what
        if kind not in ELEMENTWISE:
            return None
        value = call.makes[0]
    return None


def _with_bases(
    changed: frozenset[int], recording: Recording, known: frozenset[int], calls: Sequence[Call]
) -> tuple[frozenset[int], tuple[tuple[int, int], ...]]:
    """Values that a segment changes in place, with those whose copy has to show all of them; and (value, of value).

    A segment changes a copy of what it takes. Where several names show the same elements, one copy serves all.
    """
    windows, views = recording.windows, list[tuple[int, int]]()
    bases = set(changed)
    for value in sorted(changed):
        others = [v for v in changed if v != value and v in windows and value in windows]
        if not any(windows[v].overlaps(windows[value]) for v in others):
            continue
        covering = [
            v
            for v in sorted(known)
            if v in windows
            and all(windows[v].covers(windows[o]) for o in (value, *others) if windows[o].overlaps(windows[value]))
        ]
        if not covering:
            call = next(call for call in calls if value in call.changes)
            raise JobRefused(
                f"{call} (called at {call.place}) changes a tensor in place that was made before the cut and is used "
                "here under several names: use the form that returns a new tensor (inplace=False), or cut elsewhere"
            )
        bases.add(covering[0])
        if covering[0] != value:
            views.append((value, covering[0]))
    return frozenset(bases), tuple(views)


def _check_bonds(found: Cut, recording: Recording, model: nn.Module) -> None:
    """Raise JobRefused where calls that have to stay together are in two segments."""
    segment_of: dict[int, int] = {}
    for i, segment in enumerate(found.segments):
        between = {id(call) for call in segment.region.between} if segment.region else set()
        layers = segment.region.layers if segment.region else ()
        inside = {id(call) for call in segment.calls} | between
        for position, call in enumerate(recording.calls):
            if id(call) in inside or (isinstance(call.what, str) and call.what in layers):
                segment_of[position] = i
    for bond in bonds_of(recording, model):
        homes = [(segment_of[position], recording.calls[position].place) for position in bond.calls]
        first, place = homes[0]
        for home, other in homes:
            if home != first:
                stages = found.segments[first].stage, found.segments[home].stage
                where = f"in stages {stages[0]} and {stages[1]}" if len(set(stages)) > 1 else "on both sides of a slice"
                raise JobRefused(f"{bond.what} {where} (at {place} and {other}): {bond.way_out}")


def check_stages(found: Cut, model: nn.Module, firsts: Sequence[str]) -> None:
    """Raise PlanRefused for a stage without parameters: its workers would have nothing to keep."""
    for stage in range(len(firsts)):
        own = [segment for segment in found.segments if segment.stage == stage]
        params = any(parameters_of(call, model) for segment in own for call in segment.calls)
        if not params and not any(segment.is_sliced for segment in own):
            raise PlanRefused(
                f"stage {stage}, from {firsts[stage] or 'the beginning'} on, has no parameters: "
                "join it with the stage before or after"
            )


def parameters_of(call: Call, model: nn.Module) -> list[str]:
    """The trainable parameters that a call uses."""
    names = [name for name in call.names if isinstance(attribute_of(model, name), nn.Parameter)]
    if isinstance(call.what, str):
        module = model.get_submodule(call.what)
        names += [f"{call.what}.{name}" for name, _ in module.named_parameters(remove_duplicate=False)]
    return names


def _check_grad_mode(found: Cut) -> None:
    """Raise JobRefused for a torch.no_grad() that reaches over a cut."""
    enabled, place = True, ""
    for segment in found.segments:
        if not enabled:
            raise JobRefused(f"a torch.no_grad() begun at {place} reaches over a cut: end it before, or cut elsewhere")
        for call in segment.calls:
            if call.what is torch._C._set_grad_enabled:
                enabled, place = call.arguments[0][0], call.place
