"""Plan + job -> one worker's parts. The only file that knows all techniques.

prepare    build the optimizer, give tied names their own leaves, lay the parameters out (`setup/laid_out_model.py`)
divide     for a plan with stages: record and cut the forward, give slices leaves of their own
           (the run then gives the parameters memory that every worker sees: `setup/run_memory.py`)
take_part  in the worker: network, gradients, reduction, buffers, update over that memory; for logical workers
           with parameters of their own, `setup/local_part.py` does it
"""

import dataclasses
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from samestep.errors import JobRefused, PlanRefused
from samestep.job.job import Job
from samestep.job.objective import Objective
from samestep.job.scheduler import make_scheduler
from samestep.job.training_data import Note, first_shard, shard_batches, training_rows
from samestep.numerics import random_streams
from samestep.parallel.cutting.cut import Cut, check_stages
from samestep.parallel.cutting.sliced_attention import slice_attention
from samestep.parallel.cutting.slices import SlicedLayer, SliceOf, copied, slice_layer, slice_sizes
from samestep.parallel.execution.buffers import Buffers
from samestep.parallel.execution.bundles import Bundles
from samestep.parallel.execution.cut_executor import CutExecutor
from samestep.parallel.execution.cut_recipe import CutRecipe, Key
from samestep.parallel.execution.executor import Executor
from samestep.parallel.execution.network import Network
from samestep.parallel.execution.stale_executor import StaleExecutor, number_on_host, sets_of
from samestep.parallel.execution.synchronized_batchnorm import synchronise_batchnorm
from samestep.parallel.gradients.compressed_reduction import CompressedReduction
from samestep.parallel.gradients.job_optimizer import (
    ELEMENTWISE,
    check_optimizer,
    is_elementwise,
    skip_dynamo_in_step,
    skip_dynamo_while_building,
)
from samestep.parallel.gradients.layout import Layout, dense, untie
from samestep.parallel.gradients.linear import Place, write_weight_gradients_once
from samestep.parallel.gradients.optimizer_twins import mixed_parameter
from samestep.parallel.gradients.own_sum import OwnSum
from samestep.parallel.gradients.ownership import Ownership, num_published
from samestep.parallel.gradients.reduction import TreeReduction
from samestep.parallel.gradients.sharded_update import ShardedUpdate
from samestep.parallel.gradients.slots import GradientSlots
from samestep.parallel.lazy_init.address_space import reserve
from samestep.parallel.lazy_init.lazy_replay import LazyModel
from samestep.plan.plan import Plan
from samestep.setup.executor_inputs import between_hosts, inputs_of
from samestep.setup.laid_out_model import LaidOutModel, Names, edges_of, entry_segments, hollow, ownership_of, pieces_of
from samestep.setup.local_part import take_local_part
from samestep.setup.regions import regions_of
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


def divide(job: Job, plan: Plan, prepared: LaidOutModel, known: dict[Key, Cut] | None = None) -> LaidOutModel:
    """Cut the network as a plan with stages says.

    known: the cuts of another copy of the model. Raises PlanRefused or JobRefused for what cannot be cut.
    """
    check_update(plan, prepared)
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
    recipe = CutRecipe(prepared.model, objective, starts, slices, {} if known is None else known, job.precision)
    if not recipe.known:
        random_streams.enter(job.seed, "record")
        with hollow(prepared):
            recipe.of(first_shard(job, plan.numerics.shards))
    structure = next(iter(recipe.known.values()))
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
    found = dataclasses.replace(prepared, recipe=recipe, sliced=sliced, layout=sliced_layout(prepared.names, sliced))
    found.drop_wholes()
    return found


def check_update(plan: Plan, prepared: LaidOutModel) -> None:
    """Raises PlanRefused where workers would each update a part of what the optimizer looks at together."""
    if plan.workers == 1 or logical_of(plan) is not None:
        return
    found = mixed_parameter(prepared.optimizer, {id(param): name for name, param, _ in prepared.names})
    if found is not None:
        raise PlanRefused(
            f"{type(prepared.optimizer).__name__} looks at several parameters together: {found} changes in another way "
            f"when only a part of them is there, and {plan.workers} workers update a part each: train on one worker "
            "(--workers 1), or use an optimizer that updates each parameter by itself (of a global norm, "
            "Job.clip_grad_norm is exact)"
        )


def without_memory(part: SliceOf) -> Tensor:
    """For a slice's values, which come later: address space only."""
    shape = part.of(part.whole).shape
    storage = reserve(shape.numel() * part.whole.element_size())
    strides = torch.empty(shape, device="meta").stride()
    return torch.empty(0, dtype=part.whole.dtype).set_(storage, 0, shape, strides)


def compute_initial_values(
    prepared: LaidOutModel, ownership: Sequence[Ownership], rank: int, hosts: Sequence[int], seed: int
) -> None:
    """Compute the initial values of the entries that worker `rank` is the first of its host to own, and of the
    parameters that no optimizer holds."""
    assert prepared.initial is not None
    layout, places = prepared.layout, dict[str, Tensor | list[tuple[tuple[int, int, int], Tensor]]]()
    name_of = {id(param): name for name, param in prepared.model.named_parameters()}
    for i, entry in layout.owners():
        if rank != next((worker for worker in ownership[i].workers if hosts[worker] == hosts[rank]), None):
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
    """Worker `transport.rank`'s parts, ready for step `first_step`. note: is called with the rows that it takes."""
    if isinstance(job.loss, nn.Module):  # may hold the weights of classes
        job.loss.to(shared.parameters.device)
    inputs = inputs_of(job, plan, prepared, transport, first_step, note, allow_nan)
    if (logical := logical_of(plan)) is not None:
        return take_local_part(job, logical, shared, first_step, inputs)
    rank, layout, ownership, stale = transport.rank, prepared.layout, inputs["ownership"], steps_stale(plan)
    gradients = GradientSlots(layout, shared.slots[rank][: num_published(plan, set(ownership), rank)])
    if prepared.initial is not None:
        compute_initial_values(prepared, ownership, rank, transport.hosts, job.seed)
        transport.fence()
    write_weight_gradients_once(prepared.model, gradients.place_of)
    pieces, edges = pieces_of(prepared, plan, ownership, transport.hosts), edges_of(plan, layout)
    counts = [num_published(plan, set(ownership), worker) if own else 0 for worker, own in enumerate(shared.slots)]
    sets = sets_of(shared.slots, counts, stale)
    exchanges = [between_hosts(layout, shared, transport, ownership, pieces, slots, edges) for slots in sets]
    reductions: list[TreeReduction] = [OwnSum(layout, gradients)]
    if plan.workers > 1 or stale:
        kind = TreeReduction if edges is None else CompressedReduction
        reductions = [
            kind(layout, ownership, rank, pieces[rank], slots, exchange, edges)
            for slots, exchange in zip(sets, exchanges, strict=True)
        ]
    if not stale and exchanges[0] is not None:
        gradients.when_folded = exchanges[0].ready
    executor = Executor(
        **inputs,
        gradients=gradients,
        reduction=reductions[0],
        edges=edges,
        buffers=Buffers(prepared.model, shared.boards),
        update=ShardedUpdate(prepared.optimizer, layout, pieces[rank]),
        scheduler=make_scheduler(job, prepared.optimizer),
        whole=prepared.whole,
    )
    if plan.stages:
        return CutExecutor(**vars(executor), network=network_of(prepared, plan, executor))
    if not stale:
        return executor
    views = [gradients.views_in(slots[rank]) for slots in sets]
    shared.versions[number_on_host(transport)] = version_at(first_step, stale)
    bound = Bound(stale, shared.versions)
    return StaleExecutor(**vars(executor), stale=stale, bound=bound, reductions=reductions, views=views)


def reassign_shards(
    executor: Executor,
    assign: tuple[int, ...],
    job: Job,
    prepared: LaidOutModel,
    shared: RunMemory,
    step: int,
    note: Note | None = None,
) -> None:
    """Give workers other shards from `step` on, over memory that was shared for any assignment.

    All workers call it between the same two steps. Ownership of the pieces of a parameter does not follow the shards.
    """
    assert not executor.plan.stages, "only shards of whole models are reassigned"
    plan, transport, layout = dataclasses.replace(executor.plan, assign=assign), executor.transport, prepared.layout
    rank, ownership = transport.rank, ownership_of(prepared, plan)
    pieces = pieces_of(prepared, plan, ownership, transport.hosts)
    assert [piece for piece, _ in executor.update.targets] == pieces[rank]
    exchange = between_hosts(layout, shared, transport, ownership, pieces, shared.slots)
    if exchange is not None:
        exchange.continue_from(executor.reduction.exchange)
    published = shared.slots[rank][: num_published(plan, set(ownership), rank)]
    executor.gradients.publish_at(executor.gradients.views_in(published))
    executor.gradients.when_folded = None if exchange is None else exchange.ready
    executor.reduction = TreeReduction(layout, ownership, rank, pieces[rank], shared.slots, exchange)
    executor.plan, executor.ownership = plan, ownership
    executor.schedules.clear()
    executor.work.clear()
    if job.data is not None:
        executor.next_batch = shard_batches(job, plan, rank, training_rows(job), step, note).__next__


def network_of(prepared: LaidOutModel, plan: Plan, executor: Executor) -> Network:
    """A worker's part of the cut model."""
    structure, transport = prepared.structure, executor.transport
    assert structure is not None, "a plan with stages has cut the model"
    assert prepared.recipe is not None, "a plan with stages has cut the model"

    def place_of(param: nn.Parameter) -> Place:
        return executor.gradients.place_of(param) or (lambda: None)

    segments = entry_segments(prepared)
    computed = [i for i, own in enumerate(ownership_of(prepared, plan)) if transport.rank in own.workers]
    numbers = range(len(structure.segments))
    return Network(
        plan=plan,
        transport=transport,
        bundles=Bundles(transport),
        recipe=prepared.recipe,
        regions=regions_of(prepared, plan, transport.rank, place_of),
        entries=[[i for i in computed if segments[i] == number] for number in numbers],
        buffers=[segment_buffers(structure, number, executor.buffers) for number in numbers],
        recompute_stages=[stage.recompute for stage in plan.stages],
    )


def segment_buffers(structure: Cut, number: int, buffers: Buffers) -> list[int]:
    """The buffers that a segment's calls use; those that no call uses have their homes too."""
    found = {name for name, home in structure.homes.items() if home == number and name not in structure.used}
    for call in structure.segments[number].calls:
        found |= call.names
        if isinstance(call.what, str):
            found |= {name for name in buffers.names if name.startswith(call.what + ".")}
    return [i for i, name in enumerate(buffers.names) if name in found]
