"""Plans by name: `slices`, `hybrid`, `pipeline`; and layer patterns resolved to layers.

    slices     every layer that can be sliced is, over all workers
    hybrid     Linear, Embedding and attention sliced, convolutions and the rest data-parallel (Krizhevsky 2014)
    pipeline   as many stages as workers, as even in work as the chain of layers allows

Presets leave whole what cannot be sliced; a plan that names such a layer is refused with the reason.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from itertools import accumulate, pairwise

import torch
from torch import Tensor, nn

from samestep.errors import PlanRefused
from samestep.job.job import Job
from samestep.job.objective import Objective
from samestep.job.training_data import first_shard
from samestep.parallel.cutting.attention import attention_of
from samestep.parallel.cutting.bonds import Bond, bonds_of
from samestep.parallel.cutting.cut import values_in
from samestep.parallel.cutting.recorder import record
from samestep.parallel.cutting.recording import Call, Recording
from samestep.parallel.cutting.slices import CONVOLUTIONS, outputs_of, why_not_sliced
from samestep.plan.plan import Stage, equal_shares, spell
from samestep.system.device import precision_of

DEFAULT_SLICES = 4


def sliceable(job: Job, model: nn.Module, shards: int) -> dict[str, str | None]:
    """Every layer with weights of its own, and why it has to stay whole (None: it can be sliced)."""
    return layers_of(job, model, shards).why_whole


@dataclass
class WeightedLayers:
    """The layers with weights of their own."""

    why_whole: dict[str, str | None]  # why each has to stay whole; None: it can be sliced
    stages: dict[str, int]  # of those that can be sliced


def layers_of(job: Job, model: nn.Module, shards: int, firsts: Sequence[str] = ()) -> WeightedLayers:
    """firsts: the first modules of the stages after the first."""
    found: dict[str, str | None] = {}
    stages: dict[str, int] = {}
    for name, module in model.named_modules():
        inside = isinstance(model.get_submodule(name.rpartition(".")[0]), nn.MultiheadAttention)  # its out_proj
        if any(True for _ in module.parameters(recurse=False)) and not inside:
            found[name] = why_not_sliced(module, shared=_is_shared(model, module))
    able = [name for name, reason in found.items() if reason is None]
    recording = recorded(job, model, shards, able, firsts)
    wanted = {value for call in recording.calls for value in call.takes} | values_in(recording.result)
    bonds, used = bonds_of(recording, model), with_gradients(recording)
    for name in able:
        calls = [call for call in recording.calls if call.what == name]
        direct = any(used.startswith(f"{name}.") for call in recording.calls for used in call.names)
        if direct or len(calls) != 1:
            times = "uses its weights directly" if direct else f"calls it {len(calls)} times"
            times = times if direct or calls else "does not call it by itself"
            found[name] = f"forward {times}"
        elif isinstance(model.get_submodule(name), nn.MultiheadAttention):
            asked = attention_of(calls[0], recording.shapes, wanted)
            found[name] = asked if isinstance(asked, str) else None
        elif len(calls[0].takes) != 1:
            found[name] = f"it takes {len(calls[0].takes)} tensors"
        elif len(calls[0].makes) != 1:
            found[name] = f"it makes {len(calls[0].makes)} tensors"
        elif calls[0].makes[0] not in used:
            found[name] = "nothing that forward returns depends on what it makes"
        if found[name] is None and (bond := _bond_around(calls[0], recording, bonds)) is not None:
            places = [recording.calls[i].place for i in (bond.calls[0], bond.calls[-1])]
            found[name] = f"it is between two calls that stay together: {bond.what} at {places[0]} and {places[1]}"
        if found[name] is None:
            stages[name] = calls[0].stage
    return WeightedLayers(found, stages)


def with_gradients(recording: Recording) -> frozenset[int]:
    """The values that the result depends on otherwise than by `detach`."""
    found = set(values_in(recording.result))
    for call in reversed(recording.calls):
        if not found.isdisjoint((*call.makes, *call.changes)) and call.what not in (Tensor.detach, torch.detach):
            found |= call.takes
    return frozenset(found)


def _bond_around(call: Call, recording: Recording, bonds: Sequence[Bond]) -> Bond | None:
    """The bond that a region in the place of a call would break."""
    position = next(i for i, other in enumerate(recording.calls) if other is call)
    return next((bond for bond in bonds if bond.calls[0] <= position <= bond.calls[-1]), None)


def _is_shared(model: nn.Module, module: nn.Module) -> bool:
    """Whether a parameter of a layer has a second name (each name has a leaf of its own by now)."""
    places = [param.data_ptr() for param in model.parameters() if param.numel()]
    return any(places.count(param.data_ptr()) > 1 for param in module.parameters() if param.numel())


def sliced_stage(name: str, job: Job, model: nn.Module, shards: int, num_slices: int | None) -> Stage:
    """The one stage of the presets `slices` and `hybrid`, all on one worker.

    Raises PlanRefused where there is no layer to slice.
    """
    layers = sliceable(job, model, shards)
    slices: list[tuple[str, tuple[int, ...]]] = []
    for layer, reason in layers.items():
        module = model.get_submodule(layer)
        if reason is None and not (name == "hybrid" and isinstance(module, CONVOLUTIONS)):
            slices.append((layer, (min(num_slices or DEFAULT_SLICES, outputs_of(module)),)))
    if not slices:
        reasons = "; ".join(f"{layer}: {reason or 'a convolution'}" for layer, reason in list(layers.items())[:5])
        raise PlanRefused(f"--plan {name} finds no layer to slice in this model ({reasons}): use --plan data")
    return Stage("", (0,), (shards,), tuple(slices))


def resolved(stages: Sequence[Stage], job: Job, model: nn.Module, shards: int, source: str) -> tuple[Stage, ...]:
    """The stages with patterns replaced by the layers that they match.

    Raises PlanRefused where they do not fit the model.
    """
    known = {name for name, _ in model.named_modules()}
    for number, stage in enumerate(stages):
        if stage.first and stage.first not in known:
            raise PlanRefused(f"{source}: stage {number} begins at {stage.first!r}, and the model has no such layer")
    if not any(stage.slices for stage in stages):
        return tuple(stages)
    called = layers_of(job, model, shards, [stage.first for stage in stages[1:]])
    layers = called.why_whole
    found = []
    for number, stage in enumerate(stages):
        slices: dict[str, tuple[int, ...]] = {}
        for pattern, counts in stage.slices:
            matches = [layer for layer in layers if fnmatchcase(layer, pattern)]
            exact = pattern in layers
            if not matches:
                raise PlanRefused(
                    f"{source}: the pattern {pattern!r} of stage {number} matches no layer with weights; "
                    f"the model has {', '.join(list(layers)[:12])}{', ...' if len(layers) > 12 else ''}"
                )
            able = [layer for layer in matches if layers[layer] is None]
            if (exact and layers[pattern] is not None) or not able:
                layer = pattern if exact else matches[0]
                raise PlanRefused(f"{source}: {layer} cannot be sliced: {layers[layer]}; leave it whole")
            here = [layer for layer in able if called.stages[layer] == number]
            if not here:
                raise PlanRefused(
                    f"{source}: stage {number} slices {pattern!r}, and forward calls {able[0]} in stage "
                    f"{called.stages[able[0]]}: name it there"
                )
            for layer in here:
                outputs = outputs_of(model.get_submodule(layer))
                if sum(counts) > outputs:
                    raise PlanRefused(
                        f"{source}: {sum(counts)} slices ({spell(counts)}) of {layer}, which has {outputs} outputs: "
                        f"use at most {outputs}"
                    )
                slices[layer] = counts
        ordered = tuple((layer, slices[layer]) for layer in layers if layer in slices)
        found.append(Stage(stage.first, stage.workers, stage.assign, ordered, stage.recompute))
    return tuple(found)


def pipeline_stages(job: Job, model: nn.Module, shards: int, workers: int) -> tuple[Stage, ...]:
    """At most as many stages as there are parts with parameters; further workers replicate the heaviest.

    Raises PlanRefused where there is no such part.
    """
    parts = chain_of(model)
    recording = recorded(job, model, shards, parts)
    work = work_of(recording, model, parts)
    if not work:
        raise PlanRefused("--plan pipeline finds no layer with parameters that forward calls")
    work = joined(work, recording, bonds_of(recording, model))
    parts = list(work)
    num_stages = min(workers, len(parts))
    bounds = balanced([work[part] for part in parts], num_stages)
    loads = [sum(work[part] for part in parts[a:b]) for a, b in pairwise(bounds)]
    sizes = [1] * num_stages
    for _ in range(workers - num_stages):
        sizes[max(range(num_stages), key=lambda p: (loads[p] / sizes[p], -p))] += 1
    stages, rank = [], 0
    for p, size in enumerate(sizes):
        first = parts[bounds[p]] if p else ""
        stages.append(Stage(first, tuple(range(rank, rank + size)), equal_shares(shards, size)))
        rank += size
    return tuple(stages)


def chain_of(model: nn.Module) -> list[str]:
    """The modules between which a pipeline may be cut: containers opened, everything else whole."""
    found: list[str] = []

    def visit(prefix: str, module: nn.Module) -> None:
        for local, child in module.named_children():
            name = f"{prefix}.{local}" if prefix else local
            share = sum(p.numel() for p in child.parameters()) / max(1, total)
            is_container = isinstance(child, nn.Sequential | nn.ModuleList | nn.ModuleDict)
            if any(True for _ in child.parameters()):
                if is_container or (share > 0.5 and any(True for _ in child.children())):
                    visit(name, child)
                else:
                    found.append(name)

    total = sum(p.numel() for p in model.parameters())
    visit("", model)
    return found


def recorded(job: Job, model: nn.Module, shards: int, parts: Sequence[str], firsts: Sequence[str] = ()) -> Recording:
    with precision_of(job.precision, next(model.parameters()).device):
        return record(model, Objective(job.loss, job.forward).run, first_shard(job, shards), firsts, parts)


def work_of(recording: Recording, model: nn.Module, parts: Sequence[str]) -> Mapping[str, float]:
    """Multiplications of every part that forward calls, in the order of calling; a rough count."""
    found: dict[str, float] = {}
    for call in recording.calls:
        if isinstance(call.what, str) and call.what in parts:
            module = model.get_submodule(call.what)
            # Of the outputs: a convolution with a stride computes fewer than it reads.
            rows = max((_positions(recording, v) for v in call.makes), default=1)
            weights = sum(p.numel() for p in module.parameters())
            scale = 1.0 if isinstance(module, nn.Embedding | nn.EmbeddingBag) else float(weights)
            found[call.what] = found.get(call.what, 0.0) + rows * scale + 1.0
    return found


def joined(work: Mapping[str, float], recording: Recording, bonds: Sequence[Bond]) -> Mapping[str, float]:
    """The parts between which no bond is broken, each with the work of those that follow it up to the next one."""
    found: dict[str, float] = {}
    for part, amount in work.items():
        position = next(i for i, call in enumerate(recording.calls) if call.what == part)
        if found and any(bond.is_cut_before(position) for bond in bonds):
            found[list(found)[-1]] += amount
        else:
            found[part] = amount
    return found


def _positions(recording: Recording, value: int) -> int:
    """Rows times positions of a value: everything but its channels."""
    shape = recording.shapes[value]
    if len(shape) == 4:
        return int(shape[0] * shape[2] * shape[3])
    return int(shape[:-1].numel()) if len(shape) > 1 else int(shape.numel())


def balanced(work: Sequence[float], num_stages: int) -> list[int]:
    """Bounds of contiguous stages whose largest sum is least (dynamic programming over prefixes)."""
    n, sums = len(work), list(accumulate(work, initial=0.0))
    best: list[list[tuple[float, int]]] = [[(sums[i], 0) for i in range(n + 1)]]
    for p in range(1, num_stages):
        row = [(float("inf"), 0)] * (n + 1)
        for i in range(p + 1, n + 1):
            row[i] = min((max(best[p - 1][j][0], sums[i] - sums[j]), j) for j in range(p, i))
        best.append(row)
    bounds = [n]
    for p in range(num_stages - 1, -1, -1):
        bounds.append(best[p][bounds[-1]][1] if p else 0)
    return bounds[::-1]
