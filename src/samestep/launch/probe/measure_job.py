"""Measure a job: probes of a few plans give the cost of every action.

    uncut     the whole model on each worker           Load, Forward, Backward, adding, Reduce, Update, ...
    finest    a segment for every unit                 each unit's forward and backward
    sliced    every region in slices                   each region, and the rest of its units

each by one worker alone, and by all workers of the machine at once.
"""

import itertools
import statistics
import time
from collections.abc import Iterable, Sequence
from dataclasses import replace
from functools import partial

import torch
from torch import nn

from samestep.errors import Refused
from samestep.job.job import Job
from samestep.launch.probe.children import fork_all
from samestep.launch.probe.probe import ActionTiming, Probe, probe
from samestep.numerics.numerics import Numerics
from samestep.numerics.reduction_tree import local_plan
from samestep.plan.cluster import Cluster
from samestep.plan.machine import Host, Link
from samestep.plan.plan import Plan, Stage, equal_shares, slices_text
from samestep.planner.cost.chain import Chain
from samestep.planner.cost.estimate import estimate
from samestep.planner.cost.measured_costs import MeasuredCosts, Pair, Passing, Table
from samestep.transport.shared_fabric import SharedFabric

BUDGET = 10.0  # seconds for all probes together; slow steps may take longer
SIZES = (4096, 1 << 18, 1 << 20)  # bytes of the tensors that are passed
ROUNDS = 30
BETWEEN_HOSTS = (
    0.6e-3,
    1.5e-3,
)  # seconds of sending and of getting a message between hosts whose cores all compute: gloo's thread
# takes turns with them. Measured with the MLP's pipeline (docs/lab-log.md, 2026-11-27)
PASSES = ("Forward", "Backward", "Send", "Receive", "SendGradient", "ReceiveGradient")  # of shards through a pipeline


def measure(job: Job, chain: Chain, numerics: Numerics, model: nn.Module, workers: int) -> MeasuredCosts:
    """Costs with these numerics, of one worker alone and of `workers` at once. Raises what a worker raised."""
    workers = max(1, min(workers, chain.shards))
    alone = measure_table(job, chain, numerics, model, 1)
    if workers == 1:
        return MeasuredCosts(alone, alone, Passing(0.0, 0.0, 0.0, 0.0, *BETWEEN_HOSTS))
    together = measure_table(job, chain, numerics, model, workers)
    # One worker alone reads no sums of others, and workers with one shard each add nothing: each table lacks what the
    # other has.
    alone = replace(alone, reduce=together.reduce)
    if workers == chain.shards:
        together = replace(together, add=alone.add)
    costs = MeasuredCosts(alone, together, passing())
    late = wake_up_seconds(job, chain, numerics, model, costs)
    return replace(costs, passing=replace(costs.passing, receive=costs.passing.receive + late))


def wake_up_seconds(job: Job, chain: Chain, numerics: Numerics, model: nn.Module, costs: MeasuredCosts) -> float:
    """Seconds of each message in a pipeline beyond those of two workers that only pass messages.

    A worker that waits for a message sleeps, and wakes with cold caches. A short run of two stages measures by how much
    its workers are busy longer than expected, per shard; each receives one message per shard. 0 if nothing can be cut.
    """
    if len(chain.units) < 2 or chain.why_uncut is not None or numerics.sync_batchnorm:
        return 0.0
    both = [pair.forward + pair.backward for pair in costs.together.units]
    cut = min(range(1, len(both)), key=lambda i: abs(sum(both[:i]) - sum(both[i:])))
    stages = [Stage(chain.units[i].name if i else "", (rank,), (chain.shards,)) for rank, i in enumerate((0, cut))]
    plan = Plan.staged(numerics, stages)
    here = Cluster((Host("here", 2, 2, 1),), within=Link(0.0, 1e12))
    expected = estimate(plan, chain, costs, here).actions
    try:
        found = probe(job, plan, model, BUDGET / 6, least_steps=3)
    except Refused:  # a cut that two workers cannot have
        return 0.0
    longer = [
        busy_per_step(rows) - sum(seconds[name] for name in PASSES if name in seconds)
        for rows, seconds in zip(found.samples, expected, strict=True)
    ]
    return max(0.0, statistics.fmean(longer)) / chain.shards


def busy_per_step(samples: Sequence[ActionTiming]) -> float:
    """Median seconds that a worker is busy with shards in a step; the first step, which warms up, is left out."""
    steps: dict[int, float] = {}
    for s in samples:
        steps[s.step] = steps.get(s.step, 0.0) + s.busy * (s.action in PASSES)
    return median(list(steps.values())[1:])


def measure_table(job: Job, chain: Chain, numerics: Numerics, model: nn.Module, workers: int) -> Table:
    plans = plans_to_probe(chain, numerics, workers)
    seconds = BUDGET / 2 / len(plans)
    found = [probe(job, plan, model, seconds) for plan in plans]
    finest = found[1] if len(chain.units) > 1 else None
    sliced = found[-1] if chain.regions else None
    return table_of(chain, workers, found[0], finest, sliced)


def plans_to_probe(chain: Chain, numerics: Numerics, workers: int) -> list[Plan]:
    """The uncut plan; the finest one and the sliced one where there is something to cut."""
    ranks, shares = tuple(range(workers)), equal_shares(chain.shards, workers)
    plans = [Plan(numerics, shares)]
    if len(chain.units) > 1:
        stages = [Stage(unit.name if i else "", ranks, shares) for i, unit in enumerate(chain.units)]
        plans.append(Plan.staged(numerics, stages))
    if chain.regions:
        slices = tuple((layer, equal_shares(r.slices, workers)) for r in chain.regions for layer in r.layers)
        stage = Stage("", ranks, shares, slices)
        plans.append(Plan.staged(replace(numerics, slices=slices_text([stage]), join=0), [stage]))
    return plans


def table_of(chain: Chain, workers: int, uncut: Probe, finest: Probe | None, sliced: Probe | None) -> Table:
    """Costs from the samples. Medians throughout: other processes may run beside a probe."""
    shares, total = uncut.plan.assign, chain.parameters
    whole, add = dense_costs(uncut, 0, shares, total)
    units: tuple[Pair, ...] = (whole,)
    if finest is not None:
        units = tuple(dense_costs(finest, i, shares, u.parameters)[0] for i, u in enumerate(chain.units))
    regions, rests = sliced_costs(chain, sliced, units, shares) if sliced is not None else ((), ())
    touched, own = max(shares), total / workers
    nodes = sum(len(local_plan(range(s), chain.shards).left) for s in shares)

    def one(action: str) -> float:
        return median(s.busy for rows in uncut.samples for s in rows if s.action == action)

    steps = step_seconds(uncut.samples[0])
    computing = touched * (whole.forward + whole.backward)
    return Table(
        workers,
        whole,
        units,
        regions,
        tuple(equal_shares(region.slices, workers)[0] for region in chain.regions),
        rests,
        one("Load") / touched,
        add,
        one("Agree"),
        one("MergeBuffers"),
        one("Clip"),
        one("Publish"),
        0.0 if workers == 1 else one("Reduce") / (own * nodes),
        one("Update") / own,
        gap_of(uncut.samples[0]),
        waited_per_step(uncut) / computing if workers > 1 and computing else 0.0,
        spread_of(steps),
    )


def dense_costs(found: Probe, segment: int, shares: Sequence[int], nbytes: int) -> tuple[Pair, float]:
    """Seconds of a shard through a dense segment, and of adding a byte of its gradient to another shard's.

    Shards in lockstep go forward and backward in one action, adding as they go: all of it counts as backward.
    """
    if found.plan.numerics.sync_batchnorm:
        each = [
            s.busy / share
            for rows, share in zip(found.samples, shares, strict=True)
            for s in rows
            if s.action == "Lockstep"
        ]
        return Pair(0.0, median(each)), 0.0
    adds: dict[int, int] = {}  # by shard
    at = 0
    for share in shares:
        plan = local_plan(range(at, at + share), sum(shares))
        adds |= {at + i: len(fold.into) for i, fold in enumerate(plan.folds)}
        at += share
    mine = [s for rows in found.samples for s in rows if s.segment == segment or s.segment < 0]
    forward = median(s.busy for s in mine if s.action == "Forward")
    by_adds = {
        n: median(s.busy for s in mine if s.action == "Backward" and adds[s.shard] == n) for n in set(adds.values())
    }
    base = by_adds[min(by_adds)]
    extra = [(by_adds[n] - base) / (n * nbytes) for n in by_adds if n and nbytes]
    return Pair(forward, base), max(0.0, statistics.fmean(extra)) if extra else 0.0


def sliced_costs(
    chain: Chain, found: Probe, units: Sequence[Pair], shares: Sequence[int]
) -> tuple[tuple[Pair, ...], tuple[Pair, ...]]:
    """Costs of each region, and of the rest of its units. Dense segments and regions alternate: 0 | 1 | 2 | 3 | 4."""
    regions, rests = [], []
    samples = [s for rows in found.samples for s in rows]
    for number, region in enumerate(chain.regions):
        here = [s for s in samples if s.segment == 2 * number + 1]
        regions.append(
            Pair(*(median(s.busy for s in here if s.action == a) for a in ("SliceForward", "SliceBackward")))
        )
        after, _ = dense_costs(found, 2 * number + 2, shares, 0)
        last = chain.regions[number + 1].units[0] if number + 1 < len(chain.regions) else len(chain.units)
        others = [units[i] for i in range(region.units[-1] + 1, last)]
        rests.append(
            Pair(
                max(0.0, after.forward - sum(u.forward for u in others)),
                max(0.0, after.backward - sum(u.backward for u in others)),
            )
        )
    return tuple(regions), tuple(rests)


def median(values: Iterable[float]) -> float:
    found = list(values)
    return statistics.median(found) if found else 0.0


def step_seconds(samples: Sequence[ActionTiming]) -> list[float]:
    """Seconds from the start of each step's first action to the end of its last one."""
    steps = itertools.groupby(samples, key=lambda s: s.step)
    return [max(s.stop for s in own) - min(s.start for s in own) for own in (list(rows) for _, rows in steps)]


def gap_of(samples: Sequence[ActionTiming]) -> float:
    pairs = itertools.pairwise(samples)
    return median(b.start - a.stop for a, b in pairs if b.action == "Load" and b.step == a.step + 1)


def waited_per_step(found: Probe) -> float:
    """Seconds that a worker waits in a step: the median over steps, the mean over workers."""
    per_worker = []
    for rows in found.samples:
        steps: dict[int, float] = {}
        for s in rows:
            steps[s.step] = steps.get(s.step, 0.0) + s.waited
        per_worker.append(median(steps.values()))
    return statistics.fmean(per_worker)


def spread_of(steps: Sequence[float]) -> float:
    if len(steps) < 4:
        return 0.0
    low, middle, high = statistics.quantiles(steps, n=4)
    return (high - low) / 2 / middle


def passing() -> Passing:
    """Costs of passing tensors between two workers of this host."""
    fabric = SharedFabric(2)
    wait = fork_all([partial(_pass, fabric, rank) for rank in range(2)])
    fabric.close()
    one_way, other_way = wait()
    assert isinstance(one_way, list), one_way
    assert isinstance(other_way, list), other_way
    return passing_of(one_way)


def _pass(fabric: SharedFabric, rank: int) -> list[float]:
    transport, seconds = fabric.endpoint(rank), []
    for size in SIZES:
        tensor, laps = torch.zeros(size, dtype=torch.uint8), []
        for number in range(2 * ROUNDS):
            began = time.perf_counter()
            if number % 2 == rank:
                transport.send(tensor, 1 - rank)
            else:
                transport.receive(1 - rank)
            laps.append(time.perf_counter() - began)
        seconds.append(statistics.median(a + b for a, b in zip(laps[2::2], laps[3::2], strict=True)) / 2)
    transport.fence()  # the last tensor's receiver still has a word for its sender
    transport.close()
    return seconds


def passing_of(one_way: Sequence[float]) -> Passing:
    """Costs from the seconds one way for each of SIZES: a line through smallest and largest, half for each side."""
    per_byte = max(0.0, (one_way[-1] - one_way[0]) / (SIZES[-1] - SIZES[0]))
    fixed = max(0.0, one_way[0] - per_byte * SIZES[0])
    return Passing(fixed / 2, per_byte / 2, fixed / 2, per_byte / 2, *BETWEEN_HOSTS)
