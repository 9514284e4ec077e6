"""From a plan and a divided job to its outline, and to its schedules, proven correct."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace

from samestep.errors import JobRefused, PlanRefused, Refused
from samestep.job.job import Job
from samestep.job.objective import Objective
from samestep.job.training_data import first_shard
from samestep.numerics import random_streams
from samestep.numerics.numerics import num_shards_of, shard_rows
from samestep.parallel.demand.footprint import Footprint, constant_bytes, footprint, state_per_element
from samestep.parallel.demand.planned_step import PlannedStep
from samestep.parallel.demand.traffic import Traffic, traffic
from samestep.parallel.execution.cut_recipe import CutRecipe
from samestep.parallel.gradients.layout import Piece, ValueLayout
from samestep.parallel.gradients.stretches import owners
from samestep.plan.plan import Plan
from samestep.plan.plan_summary import PlanSummary, mega
from samestep.schedule.actions import Schedule
from samestep.schedule.checker import check
from samestep.schedule.draw import schedule_svg, schedule_text
from samestep.schedule.grid import Grid
from samestep.schedule.local_steps import check_local_step, local_step_schedule
from samestep.schedule.stale_steps import check_overlapped
from samestep.setup.laid_out_model import LaidOutModel, edges_of, hollow, ownership_of, pieces_of
from samestep.sync.logical_workers import Logical, at_meetings, logical_of
from samestep.sync.staleness import steps_stale

CAPACITY = 1_000  # messages: a worker that waits takes in all that others send


def outline(
    job: Job, plan: Plan, prepared: LaidOutModel, whole: Mapping[str, str], hosts: Sequence[int]
) -> PlanSummary:
    """hosts: the host of every worker. Raises PlanRefused when the plan's order cannot be run."""
    num_shards = num_shards_of(job.batch_size, plan.numerics.shards)
    grid, schedules = checked(job, plan, prepared)
    homes = ownership_of(prepared, plan)
    pieces = pieces_of(prepared, plan, homes, hosts)
    entries = prepared.layout.entries
    rows = [len(part) for part in shard_rows(job.batch_size, num_shards)]
    edges = edges_of(plan, prepared.layout)
    needs, why = counted(job, plan, prepared, schedules, hosts)
    moved, wired = traffic(plan, prepared.structure, prepared.layout, homes, pieces, rows, hosts, edges)
    if (logical := logical_of(plan)) is not None:
        moved, wired = traffic_apart(plan, logical, prepared, hosts)
    return PlanSummary(
        str(plan),
        whole,
        tuple(
            sum(e.nbytes for e, home in zip(entries, homes, strict=True) if rank in home.workers)
            for rank in range(plan.workers)
        ),
        tuple(sum((p.stop - p.start) * entries[p.entry].param.element_size() for p in owned) for owned in pieces),
        asdict(moved),
        asdict(wired),
        needs,
        schedule_text(grid, schedules),
        schedule_svg(grid, schedules),
        uncounted=why,
    )


def counted(
    job: Job, plan: Plan, prepared: LaidOutModel, schedules: Sequence[Schedule], hosts: Sequence[int]
) -> tuple[list[dict[str, int]], str]:
    """The memory of every worker; without stages a forward that cannot be recorded still runs, and why it cannot."""
    try:
        return [asdict(found) for found in footprints(job, plan, prepared, schedules, hosts)], ""
    except Refused as error:
        if plan.stages:
            raise
        return [], str(error)


def checked(job: Job, plan: Plan, prepared: LaidOutModel) -> tuple[Grid, list[Schedule]]:
    """The schedules of a step with a full batch, proven correct. Raises PlanRefused."""
    structure = prepared.structure
    if (logical := logical_of(plan)) is not None:
        return checked_apart(plan, logical, num_shards_of(job.batch_size, plan.numerics.shards))
    grid = plan.grid(num_shards_of(job.batch_size, plan.numerics.shards), structure.sliced if structure else [(False,)])
    clip, stale = job.clip_grad_norm is not None, steps_stale(plan)

    def of_all(*, filling: bool = False) -> list[Schedule]:
        return [plan.schedule(grid, r, clip=clip, stale=stale, filling=filling) for r in range(plan.workers)]

    schedules = of_all()
    if plan.stages or stale:
        check(grid, schedules, CAPACITY)
    if stale:
        check_overlapped(grid, [of_all(filling=True)] * stale + [schedules] * (stale + 2), stale)
    return grid, schedules


def checked_apart(plan: Plan, logical: Logical, num_shards: int) -> tuple[Grid, list[Schedule]]:
    """The same for a step at whose end logical workers meet."""
    grid, shards = plan.grid(num_shards, [(False,)]), logical.all_shards(num_shards)
    workers = [logical.of(rank) for rank in range(plan.workers)]
    schedules = [local_step_schedule(own, shards, meets=True) for own in workers]
    check_local_step(grid, schedules, workers, shards, meets=True)
    return grid, schedules


def footprints(
    job: Job, plan: Plan, prepared: LaidOutModel, schedules: Sequence[Schedule], hosts: Sequence[int]
) -> list[Footprint]:
    """The memory that every worker needs, for a step with a full batch. Raises JobRefused for sync_batchnorm."""
    structure = prepared.structure
    if structure is None and plan.numerics.sync_batchnorm:
        raise JobRefused("the memory of layers in which shards meet, as sync_batchnorm=True asks for, is not counted")
    if structure is None:
        objective = Objective(job.loss, job.forward)
        recipe = CutRecipe(prepared.model, objective, [], {}, {}, job.precision)
        random_streams.enter(job.seed, "record")
        with hollow(prepared):
            structure = recipe.of(first_shard(job, plan.numerics.shards))
    homes = ownership_of(prepared, plan)
    pieces = pieces_of(prepared, plan, homes, hosts)
    logical, layout = logical_of(plan), prepared.layout
    if logical is not None:  # whoever steps alone updates all of the model
        pieces = [[Piece(i, 0, e.param.numel()) for i, e in layout.owners()] for _ in range(plan.workers)]
    state = state_per_element(prepared.optimizer)
    step = PlannedStep(plan, structure, num_shards_of(job.batch_size, plan.numerics.shards))
    constants = constant_bytes(prepared.model, layout)
    found = [
        footprint(step, rank, layout, homes, pieces[rank], state, schedules[rank], constants)
        for rank in range(plan.workers)
    ]
    if logical is None:
        return found
    return [
        footprint_apart(one, count, layout.nbytes, constants) for one, count in zip(found, logical.assign, strict=True)
    ]


def footprint_apart(one: Footprint, count: int, nbytes: int, constants: int) -> Footprint:
    """The footprint of a worker that is `count` logical ones, from that of a worker which is one.

    Each has parameters and optimizer state of its own, beside the common values and the sums that they publish.
    """
    return replace(
        one,
        parameters=(count + 1) * nbytes + constants,
        optimizer=count * one.optimizer,
        gradients=one.gradients + nbytes,
    )


def traffic_apart(
    plan: Plan, logical: Logical, prepared: LaidOutModel, hosts: Sequence[int]
) -> tuple[Traffic, Traffic]:
    """Bytes of a meeting, spread over the steps from one to the next."""
    meeting, layout = at_meetings(plan), ValueLayout(prepared.layout)
    homes = ownership_of(prepared, meeting)
    pieces = owners(layout, homes, hosts, whole=False)
    found = traffic(meeting, None, layout, homes, pieces, [1] * logical.workers, hosts)
    steps = logical.policy.steps
    moved, wired = (Traffic(**{cause: n // steps for cause, n in asdict(one).items()}) for one in found)
    return moved, wired


def check_memory(found: Sequence[Footprint], limit: int) -> None:
    """Raises PlanRefused, with both sides, when a worker needs more than `limit` bytes."""
    for rank, needs in enumerate(found):
        if needs.total > limit:
            raise PlanRefused(
                f"worker {rank} needs {mega(needs.total)} ({spelled(needs)}), --memory-limit allows {mega(limit)}: "
                "use more workers with --plan pipeline or --plan slices, recompute = true for its stages, "
                "or more shards (smaller ones)"
            )


def spelled(needs: Footprint) -> str:
    return ", ".join(f"{name} {mega(nbytes)}" for name, nbytes in asdict(needs).items())
