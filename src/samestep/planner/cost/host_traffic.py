"""Bytes that a plan moves between hosts, and the seconds that a step waits for them.

    gradients   leave while backward goes on, last layer first; the step waits for those still to be sent at its end
                (unit ready: ^)       backward   |--fc2--^--fc1--^----conv----^|
                                      the wire           |fc2|   |.....fc1.....|..conv|
                                                                               |<---->| exposed
    slices      rows to the holders, outputs back; the same with gradients: nothing hides it
    values      to hosts that do not make them (three hosts and more): after the update
    cuts        a message occupies its channel; others go on meanwhile

With stale gradients sums leave at a step's end and travel during the next ones: a step takes as long as its computing
or its transfer, whichever is longer, and that comes out of the simulation of several. Each host then gives its sums to
all others.

Each host has one wire in each direction, as fast as its slowest link to a host that takes part.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

from samestep.numerics.reduction_tree import local_plan
from samestep.plan.cluster import Cluster
from samestep.plan.machine import Link
from samestep.planner.cost.action_costs import BUSY_BYTE, ActionCosts
from samestep.planner.cost.plan_segments import PlanSegments
from samestep.schedule import actions
from samestep.schedule.actions import Action
from samestep.schedule.grid import consecutive_ranges
from samestep.sync.staleness import steps_stale

SliceAction = actions.SliceForward | actions.SliceBackward


@dataclass(frozen=True)
class UnitGradient:
    """A unit's gradient on its way to other hosts: seconds before backward's end when it is ready, and bytes."""

    before_end: float
    nbytes: float


class HostTraffic:
    """Traffic between hosts of one plan on one cluster."""

    def __init__(self, segments: PlanSegments, cluster: Cluster, num_shards: int, costs: ActionCosts) -> None:
        self.segments, self.chain, self.cluster = segments, segments.chain, cluster
        self.num_shards, self.costs = num_shards, costs
        self.hosts = cluster.hosts_of_workers()[: segments.plan.workers]
        self.stale = steps_stale(segments.plan)

    def exposed(self, action: Action) -> float:
        """Seconds of an action in which its workers wait for bytes between hosts."""
        if isinstance(action, actions.Reduce):
            return 0.0 if self.stale else self.reduction
        if isinstance(action, actions.Post):
            return self.posted[1]
        if isinstance(action, actions.Publish):
            return self.values
        if isinstance(action, actions.Agree | actions.Clip):
            return self.agreement
        return self.meeting(action) if isinstance(action, SliceAction) else 0.0

    def transfer(self, rank: int, action: Action) -> float:
        """Seconds that a message occupies its channel between hosts, or that posted sums occupy their host's wire."""
        if isinstance(action, actions.Post):
            return self.posted[0]
        if not isinstance(action, actions.Send | actions.SendGradient) or self._on_one_host(rank, action.peer):
            return 0.0
        link = self.cluster.link(rank, action.peer)
        return link.latency + self.segments.crossing(action) / link.bandwidth

    @cached_property
    def agreement(self) -> float:
        """Seconds until the first workers of all hosts have exchanged their records."""
        return self._slowest_link(range(len(self.hosts))).latency if len(set(self.hosts)) > 1 else 0.0

    @cached_property
    def reduction(self) -> float:
        """Seconds that a step waits for gradients from other hosts, and spends on moving them."""
        return max((self._reduction(stage) for stage in range(len(self.segments.stages))), default=0.0)

    @cached_property
    def posted(self) -> tuple[float, float]:
        """With stale gradients: seconds that a step's sums occupy the wire, and that moving them takes of computing."""
        workers = self.segments.stages[0].workers
        hosts = self._hosts_of(workers)
        if len(hosts) < 2:
            return 0.0, 0.0
        link = self._slowest_link(workers)
        nbytes = self._parameter_bytes(0) * max(self._partial_sums(0, host) for host in hosts) * (len(hosts) - 1)
        senders = self._most_on_one_host(workers)
        return link.latency + nbytes / min(link.bandwidth, senders / BUSY_BYTE), nbytes * BUSY_BYTE / senders

    @cached_property
    def values(self) -> float:
        """Seconds until new parameters are on every host, where hosts share the update."""
        found = [0.0]
        if self.stale:
            return 0.0
        for number, stage in enumerate(self.segments.stages):
            hosts = self._hosts_of(stage.workers)
            if len(hosts) > 2:
                link, nbytes = self._slowest_link(stage.workers), self._parameter_bytes(number)
                found.append(link.latency + nbytes * (len(hosts) - 1) / len(hosts) / link.bandwidth)
        return max(found)

    def wired(self) -> int:
        """Bytes between hosts in a step, over all hosts."""
        total = 0.0
        for number, stage in enumerate(self.segments.stages):
            hosts = self._hosts_of(stage.workers)
            if len(hosts) > 1:
                swapped = len(hosts) == 2 or self.stale > 0
                others = len(hosts) - 1 if swapped else (len(hosts) - 1) / len(hosts)
                sums = sum(self._partial_sums(number, host) for host in hosts)
                total += self._parameter_bytes(number) * sums * others
                total += 0.0 if swapped else self._parameter_bytes(number) * (len(hosts) - 1)
        everything = range(self.num_shards)
        for segment, part in enumerate(self.segments.parts):
            if part.region is not None:
                for action in (actions.SliceForward(everything, segment), actions.SliceBackward(everything, segment)):
                    total += sum(sum(leaving.values()) for leaving in self._exchanges(action))
        return int(total + self._crossed())

    def meeting(self, action: SliceAction) -> float:
        """Seconds that the workers of a sliced segment wait for the wires."""
        stage = self.segments.stages[self.segments.parts[action.segment].stage]
        if len(self._hosts_of(stage.workers)) < 2:
            return 0.0
        link = self._slowest_link(stage.workers)
        return sum(link.latency + max(leaving.values()) / link.bandwidth for leaving in self._exchanges(action))

    def _exchanges(self, action: SliceAction) -> Iterator[dict[int, float]]:
        """Bytes that leave every host in each of a sliced segment's two exchanges."""
        part = self.segments.parts[action.segment]
        assert part.region is not None
        region, stage = self.chain.regions[part.region], self.segments.stages[part.stage]
        total = sum(part.slices)
        slices = {w: own for w, own in zip(stage.workers, consecutive_ranges(part.slices), strict=True) if own}
        rows = {w: len(set(self.costs.held[part.stage][w]) & set(action.shards)) for w in stage.workers}
        sums = {w: len(local_plan(own, total).left) for w, own in slices.items()}
        columns = {w: len(own) / total for w, own in slices.items()}
        if isinstance(action, actions.SliceForward):
            inward = dict.fromkeys(slices, float(region.takes))
            outward = {w: region.makes * (sums[w] if region.is_summed else columns[w]) for w in slices}
        else:
            inward = {w: region.makes * (1.0 if region.is_summed else columns[w]) for w in slices}
            outward = {w: float(region.takes * sums[w] * region.gives_gradient) for w in slices}
        to_holders = dict.fromkeys(self._hosts_of(stage.workers), 0.0)
        to_writers = dict(to_holders)
        for writer, count in rows.items():
            for holder in slices:
                if not self._on_one_host(writer, holder):
                    to_holders[self.hosts[writer]] += count * inward[holder]
                    to_writers[self.hosts[holder]] += count * outward[holder]
        yield to_holders
        yield to_writers

    def _reduction(self, stage: int) -> float:
        workers = self.segments.stages[stage].workers
        hosts = self._hosts_of(workers)
        if len(hosts) < 2:
            return 0.0
        link = self._slowest_link(workers)
        most_sums = max(self._partial_sums(stage, host) for host in hosts)
        others = 1.0 if len(hosts) == 2 else (len(hosts) - 1) / len(hosts)
        senders = self._most_on_one_host(workers)
        rate = min(link.bandwidth, senders / BUSY_BYTE)  # no wire is faster than the processors that feed it
        free, hidden = float("-inf"), 0.0
        for gradient in self._unit_gradients(stage, min(self.costs.speeds[w] for w in workers)):
            nbytes = gradient.nbytes * most_sums * others
            begin = max(free, -gradient.before_end)
            free = begin + nbytes / rate
            hidden += rate * max(0.0, min(free, 0.0) - begin)  # bytes moved before backward's end
        return max(0.0, free) + link.latency + hidden * BUSY_BYTE / senders

    def _unit_gradients(self, stage: int, speed: float) -> list[UnitGradient]:
        """Gradients of a stage's units in the order in which they get ready, the last unit's first."""
        table = self.costs.table(self.segments.stages[stage].workers[0])
        before_end, found = 0.0, []
        for number, part in enumerate(self.segments.parts):  # the first unit of the chain is ready last
            if part.stage != stage:
                continue
            if part.region is not None:
                before_end += table.regions[part.region].backward
                continue
            own = sum(table.units[i].backward for i in part.units) + sum(table.rests[i].backward for i in part.rests)
            scale = self.costs.dense(number, table).backward / own if own else 0.0
            before_end += sum(table.rests[i].backward for i in part.rests) * scale
            for i in part.units:
                found.append(UnitGradient(before_end / speed, self.chain.units[i].parameters))
                before_end += table.units[i].backward * scale
        return found[::-1]

    def _partial_sums(self, stage: int, host: int) -> int:
        """Partial sums that a host has after it has added its own shards."""
        shards = self._spans[stage].get(host, range(0))
        return len(local_plan(shards, self.num_shards).left) if shards else 0

    @cached_property
    def _spans(self) -> list[dict[int, range]]:
        """By stage: the shards from the first to the last of every host that has any."""
        found: list[dict[int, range]] = [{} for _ in self.costs.held]
        for spans, held in zip(found, self.costs.held, strict=True):
            for worker, own in held.items():
                if own:
                    span = spans.get(self.hosts[worker], own)
                    spans[self.hosts[worker]] = range(min(span.start, own.start), max(span.stop, own.stop))
        return found

    def _parameter_bytes(self, stage: int) -> int:
        """Bytes of the parameters that are whole on every worker of a stage."""
        return sum(self.chain.units[i].parameters for p in self.segments.parts if p.stage == stage for i in p.units)

    def _crossed(self) -> float:
        """Bytes over cuts between stages on different hosts."""
        total = 0.0
        owners = [[worker for worker, own in held.items() for _ in own] for held in self.costs.held]
        for stage in range(len(self.segments.stages) - 1):
            unit = self.chain.units[self.segments.units_of(stage + 1).start]
            for a, b in zip(owners[stage], owners[stage + 1], strict=True):
                total += (unit.crossing + unit.crossing_back) * (not self._on_one_host(a, b))
        return total

    def _on_one_host(self, a: int, b: int) -> bool:
        return self.hosts[a] == self.hosts[b]

    def _hosts_of(self, workers: Sequence[int]) -> list[int]:
        return list(dict.fromkeys(self.hosts[w] for w in workers))

    def _most_on_one_host(self, workers: Sequence[int]) -> int:
        return max(sum(self.hosts[w] == host for w in workers) for host in self._hosts_of(workers))

    def _slowest_link(self, workers: Sequence[int]) -> Link:
        link = self.cluster.slowest_between_hosts(workers)
        assert link is not None, "asked only for groups on several hosts"
        return link
