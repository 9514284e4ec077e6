"""Plan + job -> one worker's parts. The only file that knows all techniques.

prepare    build the optimizer, give tied names their own leaves, lay the parameters out (`setup/laid_out_model.py`)
divide     for a plan with stages: record and cut the forward, give slices leaves of their own
           (the run then gives the parameters memory that every worker sees: `setup/run_memory.py`)
take_part  in the worker: network, gradients, reduction, buffers, update over that memory; where logical
           workers go apart, `setup/local_part.py` says how
"""

import dataclasses
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from samestep.errors import JobRefused, PlanRefused
from samestep.job.job import Job
from samestep.job.objective import Objective
from samestep.job.scheduler import make_scheduler
from samestep.job.training_data import (
    Note,
    first_shard,
    shard_batches,
    training_rows,
)
from samestep.numerics import random_streams
from samestep.parallel.cutting.cut import Cut, check_stages
from samestep.parallel.cutting.heads import slice_attention
from samestep.parallel.cutting.slices import (
    SlicedLayer,
    SlicedRegion,
    SliceOf,
    copied,
    slice_layer,
    slice_sizes,
)
from samestep.parallel.execution.buffers import Buffers
from samestep.parallel.execution.bundles import Bundles
from samestep.parallel.execution.executor import Executor
from samestep.parallel.execution.network import CutRecipe, Network
from samestep.parallel.execution.stale_executor import StaleExecutor, number_on_host, sets_of
from samestep.parallel.execution.synchronized_batchnorm import synchronise_batchnorm
from samestep.parallel.gradients.layout import Layout, dense
from samestep.parallel.gradients.linear import Place, write_weight_gradients_once
from samestep.parallel.gradients.ownership import Ownership, num_published
from samestep.parallel.gradients.reduction import TreeReduction
from samestep.parallel.gradients.sharded_update import (
    ELEMENTWISE,
    ShardedUpdate,
    check_optimizer,
    is_elementwise,
)
from samestep.parallel.gradients.slots import GradientSlots, untie
from samestep.parallel.gradients.undecorated import skip_dynamo_in_step, skip_dynamo_while_building
from samestep.parallel.lazy_init.address_space import reserve
from samestep.parallel.lazy_init.lazy_replay import LazyModel
from samestep.plan.plan import Plan
from samestep.setup.executor_inputs import between_hosts, inputs_of
from samestep.setup.laid_out_model import (
    LaidOutModel,
    Names,
    edges_of,
    entry_segments,
    hollow,
    homes_of,
    pieces_of,
)
from samestep.setup.local_part import take_part_apart
from samestep.setup.run_memory import RunMemory
from samestep.sync.logical_workers import logical_of
from samestep.sync.staleness import Bound, steps_stale, version_at
from samestep.transport.transport import Transport


def prepare(job: Job, model: nn.Module, initial: LazyModel | None = None) -> LaidOutModel:
    """Raises JobRefused when the optimizer cannot be sharded or trains none of the parameters."""
    trainable = [param for param in model.parameters() if param.requires_grad]
    for param in trainable:
        param.data = dense(param.data)
    skip_dynamo_while_building()
    optimizer = check_optimizer(job.optimizer(trainable))
    skip_dynamo_in_step(optimizer, ELEMENTWISE)
    ids = {id(param) for param in trainable}
    managed = [param for group in optimizer.param_groups for param in group["params"]]
    strangers = sum(id(param) not in ids for param in managed)
    if strangers or not managed:
        raise JobRefused(
            f"the optimizer holds {len(managed)} parameters, {strangers} of which are not trainable parameters of the "
            "model: build it from the list that Job.optimizer is called with"
        )
    if job.sync_batchnorm:
        synchronise_batchnorm(model)
    names = untie(model, managed)
    return LaidOutModel(model, optimizer, names, Layout(names), initial)


def divide(job: Job, plan: Plan, prepared: LaidOutModel, known: dict[str, Cut] | None = None) -> LaidOutModel:
    """Cut the network as a plan with stages says.

    known: the cuts of another copy of the model. Raises PlanRefused or JobRefused for what cannot be cut.
    """
    if not plan.stages:
        return prepared
    slices = {layer: counts for stage in plan.stages for layer, counts in stage.slices}
    if slices and not is_elementwise(prepared.optimizer):
        raise PlanRefused(
            f"{type(prepared.optimizer).__name__} may treat a parameter as a whole, and the plan slices "
            f"{next(iter(slices))}: use one of torch's elementwise optimizers, or leave the layers whole"
        )
    objective = Objective(job.loss, job.forward)
    starts = [stage.first for stage in plan.stages[1:]]
    way = CutRecipe(prepared.model, objective, starts, slices, {} if known is None else known, job.precision)
    if not way.known:
        random_streams.enter(job.seed, "record")
        with hollow(prepared):
            way.of(first_shard(job, plan.numerics.shards))
    structure = next(iter(way.known.values()))
    check_stages(structure, prepared.model, [stage.first for stage in plan.stages])
    sliced: dict[str, SlicedLayer] = {}
    values = copied if prepared.initial is None else without_memory
    for segment in structure.segments:
        if segment.region is None:
            continue
        column = segment.region.column
        first, num_slices = prepared.model.get_submodule(column), sum(slices[column])
        if isinstance(first, nn.MultiheadAttention):
            sliced[column] = slice_attention(column, first, num_slices, values)
            continue
        sizes = slice_sizes(first, num_slices)
        for layer in segment.region.layers:
            module = prepared.model.get_submodule(layer)
            sliced[layer] = slice_layer(layer, module, is_row=layer != column, sizes=sizes, values=values)
    found = dataclasses.replace(prepared, way=way, sliced=sliced, layout=sliced_layout(prepared.names, sliced))
    found.drop_wholes()
    return found


def without_memory(part: SliceOf) -> Tensor:
    """For a slice's values, which come later: address space only."""
    shape = part.of(part.whole).shape
    storage = reserve(shape.numel() * part.whole.element_size())
    strides = torch.empty(shape, device="meta").stride()
    return torch.empty(0, dtype=part.whole.dtype).set_(storage, 0, shape, strides)


def fill(prepared: LaidOutModel, homes: Sequence[Ownership], rank: int, hosts: Sequence[int], seed: int) -> None:
    """Compute the initial values of what worker `rank` is the first of its host to own, and of what no optimizer
    holds."""
    assert prepared.initial is not None
    layout, places = prepared.layout, dict[str, Tensor | list[tuple[tuple[int, int, int], Tensor]]]()
    name_of = {id(param): name for name, param in prepared.model.named_parameters()}
    for (_, entry), home in zip(layout.owners(), (homes[i] for i, _ in layout.owners()), strict=True):
        if rank != next((worker for worker in home.workers if hosts[worker] == hosts[rank]), None):
            continue
        if entry.along is None:
            places[entry.name] = entry.param.detach()
        else:
            windows = places.setdefault(name_of[id(entry.whole)], [])
            assert isinstance(windows, list)
            windows.append((entry.along, entry.param.detach()))
    managed = {id(p) for entry in layout.entries for p in (entry.param, entry.whole)}
    for name, param in prepared.model.named_parameters():
        if id(param) not in managed:
            param.data = torch.empty_strided(param.shape, param.stride(), dtype=param.dtype)
            places[name] = param.detach()
    random_streams.enter(seed, "model")
    prepared.initial.replay(places.get)


def sliced_layout(names: Names, sliced: Mapping[str, SlicedLayer]) -> Layout:
    """The layout with slices in the place of their wholes."""
    leaves: dict[int, list[tuple[str, nn.Parameter]]] = {}
    slices: dict[int, tuple[nn.Parameter, tuple[int, int, int]]] = {}
    for layer in sliced.values():
        for (name, part), leaf in zip(layer.parts.items(), layer.leaves, strict=True):
            leaves.setdefault(id(part.whole), []).append((name, leaf))
            slices[id(leaf)] = part.whole, (part.dim, part.start, part.stop)
    found: Names = []
    place: dict[int, int] = {}
    for i, (name, param, tied_to) in enumerate(names):
        place[i] = len(found)
        if id(param) in leaves:
            found += [(name, leaf, None) for name, leaf in leaves[id(param)]]
        else:
            found.append((name, param, None if tied_to is None else place[tied_to]))
    return Layout(found, slices)


def take_part(
    job: Job,
    plan: Plan,
    prepared: LaidOutModel,
    shared: RunMemory,
    transport: Transport,
    first_step: int,
    *,
    allow_nan: bool,
    note: Note | None = None,
) -> Executor:
    """Worker `transport.rank`'s parts, ready for step `first_step`. note: is told the rows that it takes."""
    if isinstance(job.loss, nn.Module):  # may hold the weights of classes
        job.loss.to(shared.parameters.device)
    inputs = inputs_of(job, plan, prepared, transport, first_step, note, allow_nan)
    if (logical := logical_of(plan)) is not None:
        return take_part_apart(job, logical, shared, first_step, inputs)
    rank, layout, homes, stale = transport.rank, prepared.layout, inputs["homes"], steps_stale(plan)
    gradients = GradientSlots(layout, shared.slots[rank][: num_published(plan, set(homes), rank)])
    if prepared.initial is not None:
        fill(prepared, homes, rank, transport.hosts, job.seed)
        transport.fence()
    write_weight_gradients_once(prepared.model, gradients.place_of)
    pieces = pieces_of(prepared, plan, homes, transport.hosts)
    edges = edges_of(plan, layout)
    counts = [num_published(plan, set(homes), worker) if own else 0 for worker, own in enumerate(shared.slots)]
    reductions = [
        TreeReduction(
            layout,
            homes,
            rank,
            pieces[rank],
            slots,
            between_hosts(layout, shared, transport, homes, pieces, slots, edges),
            edges,
        )
        for slots in sets_of(shared.slots, counts, stale)
    ]
    if not stale and (between := reductions[0].between) is not None:
        gradients.when_folded = between.ready
    update = ShardedUpdate(prepared.optimizer, layout, pieces[rank])
    buffers = Buffers(prepared.model, shared.boards)
    executor = Executor(
        **inputs,
        gradients=gradients,
        reduction=None if plan.workers == 1 and not stale else reductions[0],
        edges=edges,
        buffers=buffers,
        update=update,
        scheduler=make_scheduler(job, prepared.optimizer),
        network=network_of(prepared, plan, transport, buffers, gradients),
        whole=prepared.whole,
    )
    if not stale:
        return executor
    views = [gradients.views_in(slots[rank]) for slots in sets_of(shared.slots, counts, stale)]
    shared.versions[number_on_host(transport)] = version_at(first_step, stale)
    bound = Bound(stale, shared.versions)
    return StaleExecutor(**vars(executor), stale=stale, bound=bound, reductions=reductions, views=views)


def deal_anew(
    executor: Executor,
    assign: tuple[int, ...],
    job: Job,
    prepared: LaidOutModel,
    shared: RunMemory,
    step: int,
    note: Note | None = None,
) -> None:
    """From `step` on other shares, over memory that was shared for any deal. Call it between steps, everywhere alike.

    Who owns and updates which piece of a parameter does not follow the shards.
    """
    assert not executor.plan.stages, "only shares of whole models are dealt anew"
    plan, transport = dataclasses.replace(executor.plan, assign=assign), executor.transport
    rank, homes = transport.rank, homes_of(prepared, plan)
    pieces = pieces_of(prepared, plan, homes, transport.hosts)
    assert [piece for piece, _ in executor.update.targets] == pieces[rank]
    between = between_hosts(prepared.layout, shared, transport, homes, pieces, shared.slots)
    if between is not None and executor.between is not None:
        between.go_on_from(executor.between)
    executor.gradients.publish_in(shared.slots[rank][: num_published(plan, set(homes), rank)])
    executor.gradients.when_folded = None if between is None else between.ready
    executor.reduction = TreeReduction(prepared.layout, homes, rank, pieces[rank], shared.slots, between)
    executor.plan, executor.homes = plan, homes
    executor.schedules.clear()
    if job.data is not None:
        executor.next_batch = shard_batches(job, plan, rank, training_rows(job), step, note).__next__


def network_of(
    prepared: LaidOutModel, plan: Plan, transport: Transport, buffers: Buffers, gradients: GradientSlots
) -> Network | None:
    """None where nothing is cut."""
    structure, model = prepared.structure, prepared.model
    if structure is None or prepared.way is None:
        return None

    def place_of(param: nn.Parameter) -> Place:
        return gradients.place_of(param) or (lambda: None)

    regions: dict[int, SlicedRegion] = {}
    for number, segment in enumerate(structure.segments):
        if (region := segment.region) is not None:
            counts = dict(plan.stages[segment.stage].slices)[region.column]
            ends = {rank: sum(counts[: i + 1]) for i, rank in enumerate(plan.stages[segment.stage].workers)}
            own = range(0)
            if transport.rank in ends:
                i = plan.stages[segment.stage].workers.index(transport.rank)
                own = range(ends[transport.rank] - counts[i], ends[transport.rank])
            row = None if region.row is None else prepared.sliced[region.row]
            regions[number] = SlicedRegion(region, prepared.sliced[region.column], row, own, model, place_of)
    segments = entry_segments(prepared)
    numbers = range(len(structure.segments))
    return Network(
        plan=plan,
        transport=transport,
        bundles=Bundles(transport),
        way=prepared.way,
        regions=regions,
        entries=[_entries_in(prepared, plan, segments, number, transport.rank) for number in numbers],
        buffers=[segment_buffers(structure, number, buffers) for number in numbers],
        recompute_stages=[stage.recompute for stage in plan.stages],
    )


def _entries_in(prepared: LaidOutModel, plan: Plan, segments: Sequence[int], number: int, rank: int) -> list[int]:
    """The entries of a segment whose gradient worker `rank` computes."""
    homes = homes_of(prepared, plan)
    return [i for i, segment in enumerate(segments) if segment == number and rank in homes[i].workers]


def segment_buffers(structure: Cut, number: int, buffers: Buffers) -> list[int]:
    """The buffers that a segment's calls use."""
    found: set[str] = set()
    for call in structure.segments[number].calls:
        found |= call.names
        if isinstance(call.what, str):
            prefix = call.what
            found |= {name for name in buffers.names if name.startswith(f"{prefix}.")}
    return [i for i, name in enumerate(buffers.names) if name in found]
