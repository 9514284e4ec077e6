"""Plan + job -> one worker's parts. The only file that knows all techniques.

prepare    build the optimizer, give tied names their own leaves, lay the parameters out
divide     for a plan with stages: record and cut the forward, give slices leaves of their own
share      give the parameters memory that every worker sees, filled with the initial values
take_part  in the worker: network, gradients, reduction, buffers, update over that memory
"""

import dataclasses
from collections import deque
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn, optim

from samestep import streams
from samestep.codec.parse import parse_codec
from samestep.columns import RowNumbers
from samestep.consistency.logical import Logical, at_meetings, logical_of
from samestep.consistency.meeting import Outer, Seen
from samestep.consistency.staleness import Bound, steps_stale, version_at
from samestep.data import Rows, as_rows
from samestep.device import move_rest
from samestep.errors import JobRefused, PlanRefused
from samestep.job import Job
from samestep.loss import Objective
from samestep.numerics import num_shards_of, shard_rows
from samestep.parallel.apart import ExecutorApart, Replica, Untied
from samestep.parallel.batchnorm import synchronise_batchnorm
from samestep.parallel.between_hosts import BetweenHosts
from samestep.parallel.buffers import Buffers, buffer_starts
from samestep.parallel.bundles import Bundles
from samestep.parallel.cut import Cut, check_stages, parameters_of
from samestep.parallel.edges import Edges
from samestep.parallel.executor import Executor
from samestep.parallel.gradients import Gradients, untie
from samestep.parallel.heads import slice_attention
from samestep.parallel.home import Home, most_published, num_published, slice_home, stage_home
from samestep.parallel.initial import Recording
from samestep.parallel.layout import Layout, Piece, dense, share_pieces
from samestep.parallel.linear import Place, write_weight_gradients_once
from samestep.parallel.network import Network, Way
from samestep.parallel.reduce import TreeReduction
from samestep.parallel.slices import SlicedLayer, SlicedRegion, SliceOf, copied, slice_layer, slice_sizes
from samestep.parallel.stale import ExecutorStale, number_on_host, sets_of
from samestep.parallel.stretches import Stretches, by_host, owners
from samestep.parallel.unbuilt import reserve
from samestep.parallel.unchanged import Unchanged
from samestep.parallel.undecorated import skip_dynamo_in_step, skip_dynamo_while_building
from samestep.parallel.update import ELEMENTWISE, ShardedUpdate, check_optimizer, is_elementwise
from samestep.plan import Plan
from samestep.transport.base import Fabric, Transport
from samestep.tree import local_plan

Note = Callable[[RowNumbers], None]
Names = list[tuple[str, nn.Parameter, int | None]]


@dataclass(frozen=True)
class Prepared:
    """A model with its optimizer, not yet spread over workers."""

    model: nn.Module
    optimizer: optim.Optimizer
    names: Names
    layout: Layout
    initial: Recording | None = None  # how to compute the initial values, where the model has none yet
    way: Way | None = None  # of a cut network
    sliced: Mapping[str, SlicedLayer] = field(default_factory=dict)

    @property
    def structure(self) -> Cut | None:
        return None if self.way is None else next(iter(self.way.known.values()))

    @contextmanager
    def whole(self) -> Iterator[None]:
        """Inside, sliced layers have their whole weights, as copies."""
        try:
            for layer in self.sliced.values():
                for whole, dim, leaves in layer.wholes():
                    whole.data = torch.cat([leaf.detach() for leaf in leaves], dim)
            yield
        finally:
            self.drop_wholes()

    def drop_wholes(self) -> None:
        for layer in self.sliced.values():
            for whole, _, leaves in layer.wholes():
                whole.data = torch.zeros(1, dtype=whole.dtype, device=leaves[0].device).expand(whole.shape)


@dataclass(frozen=True)
class Shared:
    """The memory of a run: one copy of the parameters, the published gradient slots, the boards."""

    parameters: Tensor
    slots: Sequence[Sequence[Tensor]]  # per worker
    boards: Sequence[Tensor]  # per shard
    folded: Tensor  # per worker and entry: in which step its gradients were folded last
    versions: Tensor  # per worker of the host: the updates that it has made, where the sync policy bounds them


def prepare(job: Job, model: nn.Module, initial: Recording | None = None) -> Prepared:
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
    return Prepared(model, optimizer, names, Layout(names), initial)


def first_shard(job: Job, shards: int) -> Any:
    """The rows of the first step's first shard: what the forward is recorded with."""
    if job.data is None:
        raise JobRefused("a plan with stages or slices looks at a batch before the first step: give Job.data")
    rows = training_rows(dataclasses.replace(job, num_loader_workers=0))
    epoch, batch = next(iter(job.row_order(rows.num_rows).batches(0)))
    parts = shard_rows(len(batch), num_shards_of(len(batch), shards))
    return next(iter(rows.take(iter([(epoch, batch[parts[0].start : parts[0].stop])]))))


def divide(job: Job, plan: Plan, prepared: Prepared, known: dict[str, Cut] | None = None) -> Prepared:
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
    way = Way(prepared.model, objective, starts, slices, {} if known is None else known, job.precision)
    if not way.known:
        streams.enter(job.seed, "record")
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


@contextmanager
def hollow(prepared: Prepared) -> Iterator[None]:
    """Inside, a model that has no values yet computes with zeros that take no memory."""
    params = [] if prepared.initial is None else list(prepared.model.parameters())
    before = [param.data for param in params]
    zeros: dict[int, Tensor] = {}  # one for all names of a tied parameter
    for param in params:
        param.data = zeros.setdefault(param.data_ptr(), torch.zeros(1, dtype=param.dtype)).expand(param.shape)
    try:
        yield
    finally:
        for param, data in zip(params, before, strict=True):
            param.data = data


def without_memory(part: SliceOf) -> Tensor:
    """For a slice's values, which come later: address space only."""
    shape = part.of(part.whole).shape
    storage = reserve(shape.numel() * part.whole.element_size())
    strides = torch.empty(shape, device="meta").stride()
    return torch.empty(0, dtype=part.whole.dtype).set_(storage, 0, shape, strides)


def fill(prepared: Prepared, homes: Sequence[Home], rank: int, hosts: Sequence[int], seed: int) -> None:
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
    streams.enter(seed, "model")
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


def entry_segments(prepared: Prepared) -> list[int]:
    """The segment in which each entry of the layout lives; 0 for what forward does not use."""
    structure = prepared.structure
    segment_of: dict[str, int] = {}
    for number, segment in enumerate(structure.segments if structure else ()):
        for layer in segment.region.layers if segment.region else ():
            segment_of |= dict.fromkeys(prepared.sliced[layer].parts, number)
        for call in segment.calls:
            for name in parameters_of(call, prepared.model):
                segment_of.setdefault(name, number)
    return [segment_of.get(entry.name, 0) for entry in prepared.layout.entries]


def homes_of(prepared: Prepared, plan: Plan) -> list[Home]:
    """Of the layout's entries."""
    structure = prepared.structure
    if structure is None:
        return [stage_home(plan, 0)] * len(prepared.layout.entries)
    owners: dict[str, int] = {}
    for stage in plan.stages:
        counts = dict(stage.slices)
        for name, layer in prepared.sliced.items():
            if name in counts:
                of_slice = [rank for rank, n in zip(stage.workers, counts[name], strict=True) for _ in range(n)]
                owners |= zip(layer.parts, of_slice * (len(layer.parts) // layer.num_slices), strict=True)
    segments = entry_segments(prepared)
    return [
        slice_home(plan, owners[entry.name]) if entry.name in owners else stage_home(plan, structure.segments[s].stage)
        for entry, s in zip(prepared.layout.entries, segments, strict=True)
    ]


def pieces_of(prepared: Prepared, plan: Plan, homes: Sequence[Home], hosts: Sequence[int]) -> list[list[Piece]]:
    """What each worker updates, in the layout's order. hosts: the host of every worker."""
    edges = edges_of(plan, prepared.layout)
    whole = not is_elementwise(prepared.optimizer) or (edges is not None and edges.wants_whole)
    return owners(prepared.layout, homes, hosts, whole=whole)


def edges_of(plan: Plan, layout: Layout) -> Edges | None:
    codec = parse_codec(plan.numerics.codec, "the numerics")
    return None if codec is None else Edges(codec, layout, plan.numerics.shards)


def share(
    prepared: Prepared,
    plan: Plan,
    fabric: Fabric,
    near: Collection[int] | None = None,
    *,
    fills: bool = True,
    for_any_deal: bool = False,
) -> Shared:
    """Memory for the workers `near` (default: all) of `plan`; who `fills` it writes the initial parameters there.

    for_any_deal: enough slots for any shares. What nobody touches takes no memory.
    """
    plan = at_meetings(plan)
    layout, homes = prepared.layout, set(homes_of(prepared, plan))
    parameters = fabric.memory(layout.nbytes)
    for i, entry in layout.owners() if prepared.initial is None and fills else ():
        layout.view(parameters, i).copy_(entry.param.data)
    slots: list[list[Tensor]] = [[] for _ in range(plan.workers)]
    for rank in range(plan.workers) if near is None else near:
        count = most_published(plan) if for_any_deal else num_published(plan, homes, rank)
        slots[rank] = [fabric.memory(layout.nbytes) for _ in range(count * (steps_stale(plan) + 1))]
    board = buffer_starts(list(prepared.model.buffers()))[-1]
    boards = [fabric.memory(board) for _ in range(plan.numerics.shards)]
    folded = fabric.memory(plan.workers * len(layout.entries)).view(plan.workers, len(layout.entries))
    versions = fabric.memory(8 * (plan.workers if near is None else len(near))).view(torch.int64)
    return Shared(parameters, slots, boards, folded, versions)


def bind(prepared: Prepared, shared: Shared) -> None:
    """Let the model's parameters be views of the shared memory; what else the model has goes to the same device."""
    layout = prepared.layout
    for i, entry in enumerate(layout.entries):
        entry.param.data = layout.view(shared.parameters, i if entry.tied_to is None else entry.tied_to)
    prepared.drop_wholes()
    move_rest(prepared.model, shared.parameters.device)


def groups_that_meet(prepared: Prepared, plan: Plan) -> dict[tuple[int, ...], int]:
    """The groups of workers that compute sliced layers, and the bytes that one gives away at a time at most."""
    structure = prepared.structure
    groups: dict[tuple[int, ...], int] = {}
    for segment in structure.segments if structure else ():
        if segment.region is not None and structure is not None:
            group = plan.stages[segment.stage].workers
            values = {segment.region.takes, segment.region.makes, segment.region.joins}
            nodes = max(prepared.sliced[segment.region.column].num_slices // 2, 1)
            largest = max(structure.nbytes.get(value, 0) for value in values)
            needed = plan.numerics.shards * (nodes * largest + 4096)
            groups[group] = max(groups.get(group, 0), needed)
    return groups


def take_part(
    job: Job,
    plan: Plan,
    prepared: Prepared,
    shared: Shared,
    transport: Transport,
    first_step: int,
    *,
    allow_nan: bool,
    note: Note | None = None,
) -> Executor:
    """Worker `transport.rank`'s parts, ready for step `first_step`. note: is told the rows that it takes."""
    if (logical := logical_of(plan)) is not None:
        return take_part_apart(
            job, plan, logical, prepared, shared, transport, first_step, allow_nan=allow_nan, note=note
        )
    rank, layout, stale = transport.rank, prepared.layout, steps_stale(plan)
    homes = homes_of(prepared, plan)
    gradients = Gradients(layout, shared.slots[rank][: num_published(plan, set(homes), rank)])
    if isinstance(job.loss, nn.Module):  # may hold the weights of classes
        job.loss.to(shared.parameters.device)
    entry_of = {id(entry.param): i for i, entry in enumerate(layout.entries)}

    def place_of(param: nn.Parameter) -> Place | None:
        entry = entry_of.get(id(param))
        return None if entry is None else lambda: gradients.place(entry)

    if prepared.initial is not None:
        fill(prepared, homes, rank, transport.hosts, job.seed)
        transport.fence()
    write_weight_gradients_once(prepared.model, place_of)
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
            between_hosts(prepared, shared, transport, homes, pieces, edges, slots),
            edges,
        )
        for slots in sets_of(shared.slots, counts, stale)
    ]
    if not stale and (between := reductions[0].between) is not None:
        gradients.when_folded = between.ready
    update = ShardedUpdate(prepared.optimizer, layout, pieces[rank])
    batches = iter(()) if job.data is None else shard_batches(job, plan, rank, training_rows(job), first_step, note)
    buffers = Buffers(prepared.model, shared.boards)
    executor = Executor(
        model=prepared.model,
        objective=Objective(job.loss, job.forward),
        plan=plan,
        transport=transport,
        layout=layout,
        homes=homes,
        gradients=gradients,
        reduction=None if plan.workers == 1 and not stale else reductions[0],
        edges=edges,
        buffers=buffers,
        unchanged=Unchanged(used_parameters(prepared, homes, rank)),
        update=update,
        scheduler=make_scheduler(job, prepared.optimizer),
        next_batch=batches.__next__,
        clip_grad_norm=job.clip_grad_norm,
        allow_nan=allow_nan,
        network=network_of(prepared, plan, transport, buffers, lambda param: place_of(param) or (lambda: None)),
        whole=prepared.whole,
    )
    if not stale:
        return executor
    views = [gradients.views_in(slots[rank]) for slots in sets_of(shared.slots, counts, stale)]
    shared.versions[number_on_host(transport)] = version_at(first_step, stale)
    bound = Bound(stale, shared.versions)
    return ExecutorStale(**vars(executor), stale=stale, bound=bound, reductions=reductions, views=views)


def between_hosts(
    prepared: Prepared,
    shared: Shared,
    transport: Transport,
    homes: Sequence[Home],
    pieces: Sequence[Sequence[Piece]],
    edges: Edges | None,
    slots: Sequence[Sequence[Tensor]],
) -> BetweenHosts | None:
    """None where all workers are on one host."""
    if transport.links is None:
        return None
    layout, own = prepared.layout, pieces[transport.rank]
    stretches = Stretches(layout, homes, transport.hosts, pieces)
    return BetweenHosts(layout, homes, transport, stretches, own, slots, shared.parameters, shared.folded, edges)


def deal_anew(
    executor: Executor,
    assign: tuple[int, ...],
    job: Job,
    prepared: Prepared,
    shared: Shared,
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
    between = between_hosts(prepared, shared, transport, homes, pieces, None, shared.slots)
    if between is not None and executor.between is not None:
        between.go_on_from(executor.between)
    executor.gradients.publish_in(shared.slots[rank][: num_published(plan, set(homes), rank)])
    executor.gradients.when_folded = None if between is None else between.ready
    executor.reduction = TreeReduction(prepared.layout, homes, rank, pieces[rank], shared.slots, between)
    executor.plan, executor.homes = plan, homes
    executor.routines.clear()
    if job.data is not None:
        executor.next_batch = shard_batches(job, plan, rank, training_rows(job), step, note).__next__


def take_part_apart(
    job: Job,
    plan: Plan,
    logical: Logical,
    prepared: Prepared,
    shared: Shared,
    transport: Transport,
    first_step: int,
    *,
    allow_nan: bool,
    note: Note | None = None,
) -> ExecutorApart:
    """The same where logical workers go apart: each has a whole model's state, and no memory of it is shared."""
    rank, layout, model, common = transport.rank, prepared.layout, prepared.model, shared.parameters
    untied, homes = Untied(layout), homes_of(prepared, at_meetings(plan))
    if isinstance(job.loss, nn.Module):
        job.loss.to(common.device)

    def memory() -> Tensor:
        return torch.zeros(layout.nbytes, dtype=torch.uint8, device=common.device)

    share = len(logical.shards_of(0, logical.shards))
    slots = max(local_plan(range(n), n).num_slots for n in range(1, share + 1))
    gradients = Gradients(layout, [memory() for _ in range(slots)])
    entry_of = {id(entry.param): i for i, entry in enumerate(layout.entries)}

    def place_of(param: nn.Parameter) -> Place | None:
        entry = entry_of.get(id(param))
        return None if entry is None else lambda: gradients.place(entry)

    write_weight_gradients_once(model, place_of)
    pieces = owners(untied, homes, transport.hosts, whole=False)
    together = None
    if plan.workers > 1:
        between = None
        if transport.links is not None:
            stretches = Stretches(untied, homes, transport.hosts, pieces)
            between = BetweenHosts(
                untied, homes, transport, stretches, pieces[rank], shared.slots, common, shared.folded
            )
        together = TreeReduction(untied, homes, rank, pieces[rank], shared.slots, between)
    tied = {id(entry.param) for entry in layout.entries if entry.tied_to is not None}
    trainable = [param for param in model.parameters() if param.requires_grad and id(param) not in tied]
    boards = [common.new_zeros(len(shared.boards[0])) for _ in range(share)]
    replicas = []
    for number in logical.of(rank):
        optimizer = check_optimizer(job.optimizer(trainable))
        skip_dynamo_in_step(optimizer, ELEMENTWISE)
        update = ShardedUpdate(optimizer, layout, [Piece(i, 0, e.param.numel()) for i, e in layout.owners()])
        own, buffers = memory().copy_(common), Buffers(model, boards)
        replicas.append(Replica(number, own, update, make_scheduler(job, optimizer), buffers, first_step))
    host = by_host(range(plan.workers), transport.hosts)[transport.hosts[rank]]
    near = share_pieces(untied, len(host), whole=False)[host.index(rank)]
    outer: dict[Piece, Outer] = {}
    if logical.policy.outer is not None:
        for piece in near:
            before = untied.flat(common, piece.entry)[piece.start : piece.stop].clone()
            outer[piece] = Outer(logical.policy.outer, before, torch.zeros_like(before))
    batches = iter(()) if job.data is None else shard_batches(job, plan, rank, training_rows(job), first_step, note)
    return ExecutorApart(
        model=model,
        objective=Objective(job.loss, job.forward),
        plan=plan,
        transport=transport,
        layout=layout,
        homes=homes,
        gradients=gradients,
        reduction=None,
        buffers=replicas[0].buffers,
        unchanged=Unchanged(used_parameters(prepared, homes, rank)),
        update=replicas[0].update,
        scheduler=replicas[0].scheduler,
        next_batch=batches.__next__,
        clip_grad_norm=job.clip_grad_norm,
        allow_nan=allow_nan,
        logical=logical,
        replicas=replicas,
        common=common,
        published=shared.slots[rank],
        together=together,
        pieces=[Piece(i, 0, e.param.numel()) for i, e in layout.owners()] if together is None else pieces[rank],
        meeting=Buffers(model, shared.boards),
        near=near,
        outer=outer,
        seen=Seen(logical.policy.steps),
    )


def used_parameters(prepared: Prepared, homes: Sequence[Home], rank: int) -> list[tuple[str, nn.Parameter]]:
    """The parameters that worker `rank` computes with; those that no optimizer holds among them."""
    foreign = {id(e.param) for e, home in zip(prepared.layout.entries, homes, strict=True) if rank not in home.workers}
    foreign |= {id(entry.whole) for entry in prepared.layout.entries if entry.along is not None}
    return [(name, param) for name, param in prepared.model.named_parameters() if id(param) not in foreign]


def network_of(prepared: Prepared, plan: Plan, transport: Transport, buffers: Buffers, place_of: Any) -> Network | None:
    structure, model = prepared.structure, prepared.model
    if structure is None or prepared.way is None:
        return None
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


def _entries_in(prepared: Prepared, plan: Plan, segments: Sequence[int], number: int, rank: int) -> list[int]:
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


def training_rows(job: Job) -> Rows:
    return as_rows(job.data, "data", job.seed, job.collate_fn, job.num_loader_workers)


def shard_batches(job: Job, plan: Plan, rank: int, rows: Rows, first_step: int, note: Note | None = None) -> Any:
    """An endless iterator over the batches of worker `rank`'s shards, in the order it computes them.

    Empty when it never has a shard: a loader that looks ahead would look for its first one for ever. note: is told
    the rows of a shard that it computes from the first layer on, when its batch is taken.
    """
    if not plan.touched(rank, num_shards_of(job.batch_size, plan.numerics.shards)):
        return iter(())

    def requests() -> Any:
        for epoch, batch in job.row_order(rows.num_rows).batches(first_step):
            num_shards = num_shards_of(len(batch), plan.numerics.shards)
            parts = shard_rows(len(batch), num_shards)
            for shard in plan.touched(rank, num_shards):
                rows_of_shard = batch[parts[shard].start : parts[shard].stop]
                asked.append(rows_of_shard if shard in plan.shards_of(rank, num_shards) else None)
                yield epoch, rows_of_shard

    def noted() -> Any:
        for found in rows.take(requests()):
            taken = asked.popleft()
            if note is not None and taken is not None:
                note(taken)
            yield found

    asked: deque[RowNumbers | None] = deque()  # a loader may look ahead
    return noted()


def make_scheduler(job: Job, optimizer: optim.Optimizer) -> Any:
    if job.scheduler is None:
        return None
    scheduler = job.scheduler(optimizer)
    if isinstance(scheduler, optim.lr_scheduler.ReduceLROnPlateau) or not hasattr(scheduler, "step"):
        raise JobRefused(
            f"Job.scheduler made a {type(scheduler).__name__}, which cannot be stepped once per optimizer step: "
            "use a schedule of the step number, for example torch.optim.lr_scheduler.CosineAnnealingLR"
        )
    return scheduler
