"""Search for the fastest plan: candidates of every kind, each estimated by simulating its own schedule.

    one process    everything on one worker
    data           shards by the greedy rule, on 1, 2, ... all workers
    slices         regions whole or sliced: a descent over groups of like regions, from none, all, and the
                   fully connected ones (Krizhevsky 2014)
    pipeline       stages by exact dynamic programming (partition.py), every order; replicated and interleaved

Numerics are given: shards, threads, K. Where K is none, layers stay as the numerics say. The search is
deterministic: the same chain, costs and cluster give the same plan.
"""

import contextlib
import hashlib
import math
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise, permutations

from samestep.errors import PlanRefused
from samestep.numerics.numerics import Numerics
from samestep.plan.cluster import Cluster
from samestep.plan.machine import Link
from samestep.plan.plan import Plan, Stage, equal_shares, slices_text
from samestep.planner.cost.chain import Chain
from samestep.planner.cost.estimate import Estimate, estimate
from samestep.planner.cost.measured_costs import MeasuredCosts
from samestep.planner.search.greedy_shares import greedy_shares
from samestep.planner.search.partition import DENSE, best_partition, partition
from samestep.planner.search.pipeline_costs import LayerCosts, PipelineCosts, Replication, WorkerRow, ring_all_reduce
from samestep.planner.search.stage_costs import NothingFits, Partition, StageSpan
from samestep.schedule.orders.greedy import greedy_order
from samestep.schedule.orders.race import WorkTimes
from samestep.schedule.orders.written import spell_order

TIE = 0.02  # plans closer than this median error of predictions (benchmarks/regret) tie: the simplest is taken
ORDERS = ("1f1b", "gpipe", "zero-bubble")
KINDS = ("one process", "data", "uneven", "hybrid", "slices", "pipeline", "mixed")  # the simpler ones first
CLOSE = 8  # workers up to which shares next to those by speed are tried
NARROW = 64  # workers up to which written orders and slices are tried
FEW = 4  # groups of regions of which all subsets are tried
LONG = 1 << 13  # stages times shards up to which a pipeline of more than NARROW workers is simulated
SHOWN = 4  # layers that a candidate's name lists
ROUNDS = 3  # of a descent over groups of regions


@dataclass(frozen=True)
class SearchSpace:
    """The choices that the search has."""

    workers: tuple[int, ...]  # numbers of workers of the cluster, the first ones each time
    may_slice: bool = False  # whether the plan chooses the layers that are cut into K slices
    may_cut: bool = True  # into stages
    recompute: bool = False
    memory: float = math.inf  # bytes of each worker


@dataclass(frozen=True)
class PlanningProblem:
    """The inputs of a search: a job's chain and its costs, a cluster, and the numerics."""

    chain: Chain
    costs: MeasuredCosts
    cluster: Cluster
    numerics: Numerics

    def on_first(self, workers: int) -> "PlanningProblem":
        """The problem on the first `workers` workers of the cluster."""
        return replace(self, cluster=self.cluster.first(workers))

    def estimate(self, plan: Plan) -> Estimate:
        """The estimate of a plan. Raises PlanRefused for a plan that cannot be run here."""
        return estimate(plan, self.chain, self.costs, self.cluster)

    def candidate(self, plan: Plan) -> "Candidate":
        """The plan with its estimate. Raises PlanRefused for a plan that cannot be run here."""
        return Candidate(plan_kind(plan), self.estimate(plan))

    def candidates(self, plans: Iterable[Plan]) -> Iterator["Candidate"]:
        """Those of the plans that can be run here, with their estimates."""
        for plan in plans:
            with contextlib.suppress(PlanRefused):
                yield self.candidate(plan)

    def neighbour_links(self) -> list[Link]:
        """The links between successive workers."""
        return [self.cluster.link(a, b) for a, b in pairwise(range(self.cluster.workers))]


@dataclass(frozen=True)
class Candidate:
    """A plan with its estimate."""

    kind: str  # of KINDS
    estimate: Estimate

    @property
    def plan(self) -> Plan:
        return self.estimate.plan

    @property
    def seconds(self) -> float:
        return self.estimate.seconds

    @property
    def name(self) -> str:
        """A short name, the same for the same plan."""
        plan = self.plan
        if not plan.stages:
            return "one process" if plan.workers == 1 else f"data {','.join(map(str, plan.assign))}"
        if len(plan.stages) == 1:
            kind = "slices" if plan.workers == 1 else self.kind
            return f"{kind} on {plan.workers} ({abbreviated([layer for layer, _ in plan.stages[0].slices])})"
        groups = "|".join(",".join(map(str, stage.workers)) for stage in plan.stages)
        order = plan.order if isinstance(plan.order, str) else "list-scheduled"
        again = " recomputed" if any(stage.recompute for stage in plan.stages) else ""
        return f"{self.kind} {groups} {order}{again}"


def abbreviated(layers: Sequence[str]) -> str:
    """Names of a few layers, or the first, the last and a hash, so that other layers have another text."""
    if len(layers) <= SHOWN:
        return ", ".join(layers)
    others = hashlib.sha256(" ".join(layers).encode()).hexdigest()[:4]
    return f"{layers[0]} to {layers[-1]}, {len(layers)} layers, {others}"


def search(problem: PlanningProblem, freedom: SearchSpace) -> list[Candidate]:
    """All candidates, the best first, of those that tie the simplest. Raises PlanRefused when there is none."""
    found: dict[str, Candidate] = {}
    for one in problem.candidates(candidate_plans(problem, freedom)):
        found.setdefault(str(one.plan), one)
    if not found:
        raise PlanRefused(
            f"no plan for {problem.chain.shards} shards on {freedom.workers} workers: allow fewer workers"
        )
    return ranked(found.values())


def ranked(found: Iterable[Candidate]) -> list[Candidate]:
    """Candidates by time; the simplest of those that tie with the best comes first."""
    by_time = sorted(found, key=lambda one: (one.seconds, simplicity(one), one.name))
    ties = [one for one in by_time if one.seconds <= by_time[0].seconds * (1 + TIE)]
    pick = min(ties, key=lambda one: (simplicity(one), one.seconds))
    return [pick, *(one for one in by_time if one is not pick)]


def simplicity(one: Candidate) -> tuple[int, int, int]:
    sliced = sum(len(stage.slices) for stage in one.plan.stages)
    return KINDS.index(one.kind), one.plan.workers, sliced


def plan_kind(plan: Plan) -> str:
    sliced = [layer for stage in plan.stages for layer, _ in stage.slices]
    if plan.workers == 1:
        return "one process"
    if len(plan.stages) > 1:
        return "mixed" if sliced else "pipeline"
    if sliced:
        return "slices"
    return "data" if max(plan.assign) - min(plan.assign) <= 1 else "uneven"


def candidate_plans(problem: PlanningProblem, freedom: SearchSpace) -> Iterator[Plan]:
    chain = problem.chain
    for workers in freedom.workers:
        here = problem.on_first(workers)
        if problem.numerics.slice_counts and not freedom.may_slice:
            yield from plans_as_sliced(here)
            continue
        if workers <= chain.shards:
            yield from data_plans(here)
        if freedom.may_slice and chain.regions and workers <= NARROW:
            yield from sliced_plans(here)
        if freedom.may_cut and workers > 1 and len(chain.units) > 1 and chain.why_uncut is None:
            yield from pipelines(here, freedom)


def data_plans(problem: PlanningProblem) -> Iterator[Plan]:
    numerics, workers = problem.numerics, problem.cluster.workers
    even = equal_shares(problem.chain.shards, workers)
    yield Plan(numerics, even)
    uneven = by_speed(problem)
    if uneven == even or min(uneven) == 0:
        return
    yield Plan(numerics, uneven)
    if workers <= CLOSE:  # other work, such as moving gradients, slows workers by other factors
        yield from (Plan(numerics, moved) for moved in neighbours(uneven) if moved != even)


def neighbours(assign: tuple[int, ...]) -> Iterator[tuple[int, ...]]:
    """Assignments with one shard given to another worker; every worker keeps at least one."""
    for giver, taker in permutations(range(len(assign)), 2):
        if assign[giver] > 1:
            yield tuple(n - (i == giver) + (i == taker) for i, n in enumerate(assign))


def by_speed(problem: PlanningProblem) -> tuple[int, ...]:
    """Shards by the greedy rule, from the seconds of a shard on each worker."""
    cluster, on_host = problem.cluster, Counter(problem.cluster.hosts_of_workers())
    wholes = {count: problem.costs.table(count).whole for count in set(on_host.values())}

    def finishing(host: int, speed: float) -> Callable[[int], float]:
        whole = wholes[on_host[host]]
        seconds = (whole.forward + whole.backward) / speed
        return lambda count: count * seconds

    return greedy_shares(problem.chain.shards, list(map(finishing, cluster.hosts_of_workers(), cluster.speeds)))


# Slices: regions of the same signature are chosen together.


def sliced_plans(problem: PlanningProblem) -> Iterator[Plan]:
    chain, groups = problem.chain, like_regions(problem.chain)
    if len(groups) <= FEW:
        yield from (sliced_plan(problem, groups, some) for some in subsets(len(groups)))
        return
    connected = frozenset(i for i, group in enumerate(groups) if not is_convolution(chain, group))
    seen: set[frozenset[int]] = set()
    for start in dict.fromkeys([frozenset(range(len(groups))), connected, frozenset({heaviest(chain, groups)})]):
        if start:
            yield sliced_plan(problem, groups, start)
            yield from descent(problem, groups, start, seen)


def subsets(count: int) -> Iterator[frozenset[int]]:
    """All subsets but the empty one."""
    for bits in range(1, 1 << count):
        yield frozenset(i for i in range(count) if bits >> i & 1)


def plans_as_sliced(problem: PlanningProblem) -> Iterator[Plan]:
    """The plan whose sliced layers the numerics name. Raises PlanRefused when these were not measured so."""
    chain = problem.chain
    wanted = problem.numerics.slice_counts
    own = [i for i, region in enumerate(chain.regions) if set(region.layers) <= set(wanted)]
    covered = {layer: chain.regions[i].slices for i in own for layer in chain.regions[i].layers}
    if covered != wanted:
        strange = sorted(set(wanted.items()) ^ set(covered.items()))
        raise PlanRefused(
            f"the numerics slice {strange[0][0]} {strange[0][1]} times, and the planner can slice "
            f"{', '.join('+'.join(r.layers) + f':{r.slices}' for r in chain.regions[:6])}: give a plan file"
        )
    yield sliced_plan(problem, [own], frozenset({0}))


def heaviest(chain: Chain, groups: Sequence[Sequence[int]]) -> int:
    """The group with the most bytes of weights."""
    sizes = [sum(chain.regions[i].parameters for i in group) for group in groups]
    return max(range(len(groups)), key=sizes.__getitem__)


def descent(
    problem: PlanningProblem, groups: Sequence[Sequence[int]], chosen: frozenset[int], seen: set[frozenset[int]]
) -> Iterator[Plan]:
    """Descent: flip one group at a time while that helps; the last plan is no worse than any neighbour."""

    def seconds(of: frozenset[int]) -> float:
        return problem.estimate(sliced_plan(problem, groups, of)).seconds

    best = seconds(chosen)
    for _ in range(ROUNDS):
        before = best
        for group in range(len(groups)):
            other = chosen ^ {group}
            if not other or other in seen:
                continue
            seen.add(other)
            if (found := seconds(other)) < best:
                best, chosen = found, other
        yield sliced_plan(problem, groups, chosen)
        if best >= before:
            break


def sliced_plan(problem: PlanningProblem, groups: Sequence[Sequence[int]], chosen: frozenset[int]) -> Plan:
    """A plan of one stage, with the regions of the chosen groups in slices that are shared out by speed."""
    chain, cluster, workers = problem.chain, problem.cluster, problem.cluster.workers
    own = by_speed(problem) if workers <= chain.shards else equal_shares(chain.shards, workers)
    sliced = sorted(i for group in chosen for i in groups[group])
    curves = finishing_times(cluster.speeds)  # a region's slices all cost the same, so they are shared out like shards
    shares = {i: greedy_shares(chain.regions[i].slices, curves) for i in sliced}
    slices = tuple((layer, shares[i]) for i in sliced for layer in chain.regions[i].layers)
    stage = Stage("", tuple(range(workers)), own, slices)
    return Plan.staged(replace(problem.numerics, slices=slices_text([stage])), [stage])


def finishing_times(speeds: Iterable[float]) -> list[Callable[[int], float]]:
    """The finishing times of workers that differ in speed only."""

    def curve(speed: float) -> Callable[[int], float]:
        return lambda count: count / speed

    return [curve(speed) for speed in speeds]


def like_regions(chain: Chain) -> list[list[int]]:
    groups: dict[tuple[str, ...], list[int]] = {}
    for number, region in enumerate(chain.regions):
        groups.setdefault(tuple(chain.units[i].signature for i in region.units), []).append(number)
    return list(groups.values())


def is_convolution(chain: Chain, group: Sequence[int]) -> bool:
    return chain.units[chain.regions[group[0]].units[0]].signature.startswith("Conv")


# Pipelines.


def pipelines(problem: PlanningProblem, freedom: SearchSpace) -> Iterator[Plan]:
    numerics, workers, shards = problem.numerics, problem.cluster.workers, problem.chain.shards
    wide = workers > NARROW
    most = max(2, LONG // shards) if wide else None
    costs = PipelineCosts(layer_costs(problem), worker_row(problem, freedom), shards, replication_of(problem))
    found = best_partition(costs, most, DENSE / 10 if wide else DENSE)
    if isinstance(found, NothingFits):
        return
    for split in split_choices(found, workers, most):
        stages = stages_by_speed(split, problem)
        for order in ORDERS:
            yield Plan.staged(numerics, stages, order=order)
        if not wide:
            yield list_scheduled(Plan.staged(numerics, stages), problem)
        if freedom.recompute:
            yield Plan.staged(numerics, [replace(stage, recompute=True) for stage in stages])
    yield from interleaved_pipelines(problem)


def split_choices(found: Partition, workers: int, most: int | None = None) -> list[tuple[StageSpan, ...]]:
    """The best four splits with several stages; splits that leave a worker idle count for fewer workers.

    most: stages that a split may have.
    """
    every = [split.stages for split in (found.best, *found.runners_up)]
    several = [stages for stages in every if 1 < len(stages) <= (most or len(stages))]
    return [stages for stages in several if sum(len(span.workers) for span in stages) == workers][:4]


def layer_costs(problem: PlanningProblem) -> LayerCosts:
    """The chain as the partition search sees it, a microbatch being a shard."""
    chain, hosts = problem.chain, problem.cluster.hosts_of_workers()
    table = problem.costs.table(max(Counter(hosts).values()))
    state = 2 + chain.state  # values, gradients, and what the optimizer keeps
    crossing = [unit.crossing for unit in chain.units[1:]] + [0]
    return LayerCosts(
        tuple(pair.forward for pair in table.units),
        tuple(pair.backward for pair in table.units),
        tuple(float(unit.parameters) for unit in chain.units),
        tuple(unit.parameters * state for unit in chain.units),
        tuple(float(unit.keeps) for unit in chain.units),
        tuple(map(float, crossing)),
    )


def worker_row(problem: PlanningProblem, freedom: SearchSpace) -> WorkerRow:
    links = problem.neighbour_links()
    return WorkerRow(
        problem.cluster.speeds,
        (freedom.memory,) * problem.cluster.workers,
        tuple(link.bandwidth for link in links),
        tuple(link.latency for link in links),
    )


def replication_of(problem: PlanningProblem) -> Replication:
    links = problem.neighbour_links()
    return ring_all_reduce(min(link.bandwidth for link in links), max(link.latency for link in links))


def stages_by_speed(spans: Sequence[StageSpan], problem: PlanningProblem) -> list[Stage]:
    found = []
    for number, span in enumerate(spans):
        ranks = tuple(span.workers)
        own = greedy_shares(problem.numerics.shards, finishing_times([problem.cluster.speeds[rank] for rank in ranks]))
        found.append(Stage(problem.chain.units[span.first].name if number else "", ranks, own))
    return found


def list_scheduled(plan: Plan, problem: PlanningProblem) -> Plan:
    """The plan with the order that a list scheduler finds for its stages' times."""
    found = problem.estimate(plan)
    latency = max((link.latency for link in problem.neighbour_links()), default=0.0)
    return replace(plan, order=spell_order(greedy_order(found.grid, work_times_of(found, plan), latency)))


def work_times_of(found: Estimate, plan: Plan) -> list[WorkTimes]:
    """Seconds of a set through each stage: the longest action of each segment there, summed."""
    paces = []
    for stage in range(len(plan.stages)):
        segments = found.grid.segments_of(stage)
        totals = [sum(_longest(found, kind, segment) for segment in segments) for kind in ("Forward", "Backward")]
        paces.append(WorkTimes(*totals))
    return paces


def _longest(found: Estimate, kind: str, segment: int) -> float:
    times = [
        span.stop - span.start
        for schedule, spans in zip(found.schedules, found.outcome.spans, strict=True)
        for action, span in zip(schedule, spans, strict=True)
        if type(action).__name__ == kind and getattr(action, "segment", -1) == segment
    ]
    return max(times, default=0.0)


def interleaved_pipelines(problem: PlanningProblem) -> Iterator[Plan]:
    """Pipelines with two stages on every worker (Narayanan et al. 2021, section 2.2)."""
    chain, numerics, workers = problem.chain, problem.numerics, problem.cluster.workers
    chunks = 2 * workers
    if len(chain.units) < chunks or workers > NARROW:
        return
    row = WorkerRow.equal(chunks, min(link.bandwidth for link in problem.neighbour_links()))
    found = partition(layer_costs(problem), row, numerics.shards, ring_all_reduce(1e12))
    if isinstance(found, NothingFits):
        return
    for split in (found.best, *found.runners_up):
        if len(split.stages) == chunks:
            stages = [
                Stage(chain.units[span.first].name if i else "", (i % workers,), (numerics.shards,))
                for i, span in enumerate(split.stages)
            ]
            yield Plan.staged(numerics, stages, order="interleaved")
