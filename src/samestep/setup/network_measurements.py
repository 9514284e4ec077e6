"""Survey a job's network for the planner: its units, the bytes between them, and what may be sliced.

The forward is recorded once, cut before every layer with weights that is called once. Where such a fine cut is
not possible (a layer's weights used on both sides, a change in place that reaches over), it is taken coarser;
a network that cannot be recorded at all is one unit.
"""

import hashlib
from collections.abc import Iterator, Mapping, Sequence

from torch import nn

from samestep.errors import JobRefused, Refused
from samestep.job.job import Job
from samestep.numerics import random_streams
from samestep.parallel.cutting.cut import Cut, Segment, cut, parameters_of
from samestep.parallel.cutting.recording import Recording
from samestep.parallel.cutting.slices import outputs_of
from samestep.parallel.demand.footprint import state_per_element
from samestep.parallel.execution.bundles import HEAD
from samestep.parallel.gradients.job_optimizer import is_elementwise
from samestep.planner.cost.chain import Chain, SliceableRegion, Unit
from samestep.setup.laid_out_model import LaidOutModel, hollow
from samestep.setup.named_plans import DEFAULT_SLICES, chain_of, recorded, sliceable, work_of


def survey(job: Job, prepared: LaidOutModel, num_slices: int | None = None) -> Chain:
    """num_slices: K of every layer that may be sliced; a layer with fewer outputs has as many. Computes one shard."""
    shards, model = job.resolved_shards(), prepared.model
    why_whole: dict[str, str] = {}
    regions: tuple[SliceableRegion, ...] = ()
    why_uncut: str | None = None
    elementwise = is_elementwise(prepared.optimizer)
    with hollow(prepared):
        try:
            if job.sync_batchnorm:
                raise JobRefused("sync_batchnorm needs all shards of a step at once in every layer")
            recording, found = finest(job, model, shards)
            units = units_of(recording, found, model)
            why_whole = {name: why for name, why in sliceable(job, model, shards).items() if why is not None}
            if elementwise:
                regions = regions_of(job, model, shards, why_whole, [u.name for u in units], num_slices)
        except Exception as error:  # noqa: BLE001 - it need not fail where nothing is recorded; if it does, probes find out
            why_uncut, units, regions = str(error) or type(error).__name__, (uncut(model),), ()
    state = state_per_element(prepared.optimizer)
    return Chain(units, regions, why_whole, why_uncut, shards, job.batch_size, state, elementwise)


def uncut(model: nn.Module) -> Unit:
    """The whole model as one unit."""
    params = list(model.parameters())
    nbytes = sum(p.numel() * p.element_size() for p in params)
    digest = hashlib.sha256(str(model).encode()).hexdigest()[:12]
    return Unit("", f"whole model {digest}", nbytes, len(params), 0, 0, 0, 0, 0.0)


def finest(job: Job, model: nn.Module, shards: int) -> tuple[Recording, Cut]:
    """The forward, cut as finely as it allows. Raises JobRefused when it cannot be recorded."""
    refused: Refused | None = None
    for starts in candidates(job, model, shards):
        try:
            recording = recording_of(job, model, shards, starts)
            return recording, cut(recording, model, 1 + len(starts), {})
        except Refused as error:
            refused = error
    raise refused or JobRefused("the model has no layer with weights that forward calls")


def candidates(job: Job, model: nn.Module, shards: int) -> Iterator[list[str]]:
    """Lists of places to cut at, from fine to coarse."""
    layers = [name for name, module in model.named_modules() if has_own_weights(model, name, module)]
    recording = recording_of(job, model, shards, [], layers)
    yield cutting_points(recording, layers, model)
    parts = chain_of(model)
    coarse = recording_of(job, model, shards, [], parts)
    yield cutting_points(coarse, parts, model)
    yield []


def has_own_weights(model: nn.Module, name: str, module: nn.Module) -> bool:
    inside = isinstance(model.get_submodule(name.rpartition(".")[0]), nn.MultiheadAttention)  # its out_proj
    return bool(name) and not inside and any(True for _ in module.parameters(recurse=False))


def cutting_points(recording: Recording, layers: Sequence[str], model: nn.Module) -> list[str]:
    """The layers that are called once, in the order of the calls, but for those between two uses of a parameter."""
    first: dict[str, int] = {}
    last: dict[str, int] = {}
    for number, call in enumerate(recording.calls):
        for name in parameters_of(call, model):
            first.setdefault(name, number)
            last[name] = number
    called: dict[str, list[int]] = {}
    for number, call in enumerate(recording.calls):
        if isinstance(call.what, str) and call.what in layers:
            called.setdefault(call.what, []).append(number)
    once = {name: numbers[0] for name, numbers in called.items() if len(numbers) == 1}
    free = [n for n, at in once.items() if not any(first[p] < at <= last[p] for p in first)]
    # A first stage without weights is no stage.
    return [n for n in sorted(free, key=once.__getitem__) if any(at < once[n] for at in first.values())]


def recording_of(job: Job, model: nn.Module, shards: int, starts: Sequence[str], cuts: Sequence[str] = ()) -> Recording:
    random_streams.enter(job.seed, "record")
    return recorded(job, model, shards, cuts, starts)


def units_of(recording: Recording, found: Cut, model: nn.Module) -> tuple[Unit, ...]:
    names = [first_layer(found.segments[0], model), *recording.entered]
    layers = [name for name, module in model.named_modules() if name]
    work = work_of(recording, model, layers)
    return tuple(
        unit_of(name, found, number, model, sum(work.get(str(c.what), 0.0) for c in found.segments[number].calls))
        for number, name in enumerate(names)
    )


def first_layer(segment: Segment, model: nn.Module) -> str:
    """The first layer with weights that a segment calls; empty when it uses them directly."""
    calls = [call for call in segment.calls if isinstance(call.what, str) and parameters_of(call, model)]
    return str(calls[0].what) if calls else ""


def unit_of(name: str, found: Cut, number: int, model: nn.Module, work: float) -> Unit:
    segment = found.segments[number]
    crossing = found.crossings[number - 1] if number else ()
    there, back = heads(len(crossing)) if number else (0, 0)
    params = {p: model.get_parameter(p) for call in segment.calls for p in parameters_of(call, model)}
    kept = {storage for call in segment.calls for storage in call.saved_storages}
    own = [call for call in segment.calls if call.what == name]
    shapes = " ".join(str(tuple(found.shapes[v])) for call in own for v in sorted(call.takes))
    kind = str(model.get_submodule(name)).partition("\n")[0] if name else "calls"
    return Unit(
        name,
        f"{kind} {shapes}",
        sum(p.numel() * p.element_size() for p in params.values()),
        len(params),
        there + sum(found.nbytes[v] for v in crossing),
        back + sum(found.nbytes[v] for v in crossing if v in found.floats),
        sum(storage.nbytes for storage in kept),
        sum(found.nbytes[v] for call in own for v in call.makes),
        work,
    )


def heads(tensors: int) -> tuple[int, int]:
    """Bytes that come along with the tensors of a cut, there and back: names, and where the random streams stand."""
    names = HEAD.size + tensors
    return names + random_streams.pack(random_streams.leave()).numel(), names


def regions_of(
    job: Job, model: nn.Module, shards: int, why_whole: Mapping[str, str], names: Sequence[str], num_slices: int | None
) -> tuple[SliceableRegion, ...]:
    """The regions that can be sliced; a layer that is no unit of its own stays whole."""
    able = [name for name, _ in model.named_modules() if name in names and name not in why_whole]
    slices = {
        n: (min(num_slices or DEFAULT_SLICES, outputs_of(module)),)
        for n in able
        if has_own_weights(model, n, module := model.get_submodule(n))
    }
    if not slices:
        return ()
    found = cut(recording_of(job, model, shards, [], list(slices)), model, 1, slices)
    return tuple(region_of(found, segment, model, slices, names) for segment in found.segments if segment.region)


def region_of(
    found: Cut, segment: Segment, model: nn.Module, slices: Mapping[str, tuple[int]], names: Sequence[str]
) -> SliceableRegion:
    region = segment.region
    assert region is not None
    sliced = [p for layer in region.layers for p in model.get_submodule(layer).parameters()]
    return SliceableRegion(
        region.layers,
        tuple(names.index(layer) for layer in region.layers),
        slices[region.column][0],
        sum(p.numel() * p.element_size() for p in sliced),
        found.nbytes[region.takes],
        found.nbytes[region.makes],
        region.is_summed,
        region.takes in found.floats and region.takes >= found.num_inputs,
    )
