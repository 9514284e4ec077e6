"""Plans by name: `slices`, `hybrid`, `pipeline`; and layer patterns resolved to layers.

    slices     every layer that can be sliced is, over all workers
    hybrid     Linear and Embedding sliced, convolutions and the rest data-parallel (Krizhevsky 2014)
    pipeline   as many stages as workers, as even in work as the chain of layers allows

Presets leave whole what cannot be sliced; a plan that names such a layer is refused with the reason.
"""

from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from itertools import pairwise

from torch import nn

from samestep.errors import PlanRefused
from samestep.job import Job
from samestep.loss import Objective
from samestep.parallel.network import untouched_buffers
from samestep.parallel.recording import Recording, record
from samestep.parallel.slices import CONVOLUTIONS, outputs_of, why_whole
from samestep.parallelize import first_shard
from samestep.plan import Stage, equal_shares, spell

DEFAULT_SLICES = 4


def sliceable(model: nn.Module) -> dict[str, str | None]:
    """Every layer with weights of its own, and why it has to stay whole (None: it can be sliced)."""
    owners: dict[int, list[str]] = {}
    for name, module in model.named_modules(remove_duplicate=False):
        for param in module._parameters.values():
            if param is not None:
                owners.setdefault(param.data_ptr(), []).append(name)
    found: dict[str, str | None] = {}
    for name, module in model.named_modules():
        params = [param for param in module._parameters.values() if param is not None]
        if params or isinstance(module, nn.MultiheadAttention):
            shared = any(len(owners[param.data_ptr()]) > 1 for param in params)
            inside = _inside_whole(model, name)
            found[name] = inside or why_whole(module, shared)
    return found


def _inside_whole(model: nn.Module, name: str) -> str | None:
    """Why a layer inside this one is out of reach."""
    parts = name.split(".")
    for i in range(1, len(parts)):
        outer = model.get_submodule(".".join(parts[:i]))
        if type(outer).__module__.startswith("torch.nn.") and not isinstance(outer, nn.Sequential):
            return f"it belongs to a {type(outer).__name__}, which uses its weights directly"
    return None


def sliced_stage(name: str, model: nn.Module, shards: int, workers: int, num_slices: int | None) -> Stage:
    """The one stage of the presets `slices` and `hybrid`."""
    slices: list[tuple[str, tuple[int, ...]]] = []
    for layer, reason in sliceable(model).items():
        module = model.get_submodule(layer)
        if reason is None and not (name == "hybrid" and isinstance(module, CONVOLUTIONS)):
            k = min(num_slices or DEFAULT_SLICES, outputs_of(module))
            slices.append((layer, equal_shares(k, workers)))
    if not slices:
        raise PlanRefused(
            f"--plan {name} finds no layer to slice in this model: "
            + "; ".join(f"{layer}: {reason}" for layer, reason in list(sliceable(model).items())[:5])
        )
    return Stage("", tuple(range(workers)), equal_shares(shards, workers), tuple(slices))


def left_whole(model: nn.Module, stages: Sequence[Stage]) -> dict[str, str]:
    """The layers that a preset would have sliced, and why it did not."""
    named = {layer for stage in stages for layer, _ in stage.slices}
    return {layer: reason for layer, reason in sliceable(model).items() if reason is not None and layer not in named}


def resolved(stages: Sequence[Stage], model: nn.Module, source: str) -> tuple[Stage, ...]:
    """The stages with patterns replaced by the layers that they match."""
    layers = sliceable(model)
    known = {name for name, _ in model.named_modules()}
    found = []
    for number, stage in enumerate(stages):
        if stage.first and stage.first not in known:
            raise PlanRefused(f"{source}: stage {number} begins at {stage.first!r}, and the model has no such layer")
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
            for layer in able:
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


def slices_text(stages: Sequence[Stage]) -> str:
    """What the numerics say about slices."""
    return ",".join(f"{layer}:{sum(counts)}" for stage in stages for layer, counts in stage.slices) or "none"


def pipeline_stages(job: Job, model: nn.Module, shards: int, workers: int) -> tuple[Stage, ...]:
    """At most as many stages as there are parts with parameters; further workers replicate the heaviest."""
    parts = chain_of(model)
    recording = _record(job, model, shards, parts)
    work = work_of(recording, model, parts)
    parts = [part for part in parts if part in work]
    if len(parts) < 1:
        raise PlanRefused("--plan pipeline finds no layer with parameters that forward calls")
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


def _record(job: Job, model: nn.Module, shards: int, parts: Sequence[str]) -> Recording:
    with untouched_buffers(model):
        return record(model, Objective(job.loss, job.forward).run, first_shard(job, shards), [], parts)


def work_of(recording: Recording, model: nn.Module, parts: Sequence[str]) -> Mapping[str, float]:
    """Multiplications of every part that forward calls, in the order of calling; a rough count."""
    found: dict[str, float] = {}
    for call in recording.calls:
        if isinstance(call.what, str) and call.what in parts:
            module = model.get_submodule(call.what)
            rows = max((_positions(recording, v) for v in [*call.takes, *call.makes]), default=1)
            weights = sum(p.numel() for p in module.parameters())
            scale = 1.0 if isinstance(module, nn.Embedding | nn.EmbeddingBag) else float(weights)
            found[call.what] = found.get(call.what, 0.0) + rows * scale + 1.0
    return found


def _positions(recording: Recording, value: int) -> int:
    """Rows times positions of a value: everything but its channels."""
    shape = recording.shapes[value]
    if len(shape) == 4:
        return int(shape[0] * shape[2] * shape[3])
    return int(shape[:-1].numel()) if len(shape) > 1 else int(shape.numel())


def balanced(work: Sequence[float], num_stages: int) -> list[int]:
    """Bounds of contiguous stages whose largest sum is least (dynamic programming over prefixes)."""
    n = len(work)
    sums = [0.0]
    for value in work:
        sums.append(sums[-1] + value)
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
