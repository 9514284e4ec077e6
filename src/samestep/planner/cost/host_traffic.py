"""What goes from host to host, and how long a step waits for it.

    gradients   leave while backward goes on, last layer first; what is left when it ends is waited for
                (unit ready: ^)       backward   |--fc2--^--fc1--^----conv----^|
                                      the wire           |fc2|   |.....fc1.....|..conv|
                                                                               |<---->| exposed
    slices      rows to the holders, outputs back; the same with gradients: nothing hides it
    values      to hosts that do not make them (three hosts and more): after the update
    cuts        a message occupies its channel; others go on meanwhile

With stale gradients sums leave at a step's end and travel during the next ones: a step waits for what is longer, its
computing or the wire, and that comes out of the simulation of several. Each host then gives its sums to all others.

Each host has one wire in each direction, as fast as its slowest link to a host that takes part.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

from samestep.numerics.reduction_tree import local_plan
from samestep.plan.cluster import Cluster
from samestep.planner.cost.action_costs import BUSY_BYTE, ActionCosts
from samestep.planner.cost.plan_segments import PlanSegment, PlanSegments
from samestep.schedule import actions
from samestep.schedule.actions import Action
from samestep.sync.staleness import steps_stale


@dataclass(frozen=True)
class UnitGradient:
    """A unit's gradients on the busiest wire: when they are ready, in seconds before backward's end, and bytes."""

    before_end: float
    nbytes: float


class HostTraffic:
    """Of one plan on one cluster."""

    def __init__(self, placed: PlanSegments, cluster: Cluster, num_shards: int, busy: ActionCosts) -> None:
        self.placed, self.chain, self.cluster = placed, placed.chain, cluster
        self.num_shards, self.busy = num_shards, busy
        self.hosts = cluster.hosts_of_workers()[: placed.plan.workers]
        self._spans: dict[int, dict[int, range]] = {}  # by stage and host
        self.stale = steps_stale(placed.plan)

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
        return self.meeting(action) if isinstance(action, actions.SliceForward | actions.SliceBackward) else 0.0

    def transfer(self, rank: int, action: Action) -> float:
        """Seconds that a message occupies its channel between hosts, or what a worker posts its host's wire."""
        if isinstance(action, actions.Post):
            return self.posted[0]
        if not isinstance(action, actions.Send | actions.SendGradient) or self._near(rank, action.peer):
            return 0.0
        link = self.cluster.link(rank, action.peer)
        return link.latency + self.placed.crossing(action) / link.bandwidth

    @cached_property
    def agreement(self) -> float:
        """Seconds until the first workers of all hosts have swapped what they know, and told it to the others."""
        return self._slowest(range(len(self.hosts)))[0] if len(set(self.hosts)) > 1 else 0.0

    @cached_property
    def reduction(self) -> float:
        """Seconds that a step waits for gradients from other hosts, and spends on moving them."""
        found = [self._reduction(stage) for stage in range(len(self.placed.stages))]
        return max(found, default=0.0)

    @cached_property
    def posted(self) -> tuple[float, float]:
        """Of stale gradients: seconds that a step's sums are on the wire, and that moving them takes from computing."""
        workers = self.placed.stages[0].workers
        hosts = self._hosts_of(workers)
        if len(hosts) < 2:
            return 0.0, 0.0
        latency, bandwidth = self._slowest(workers)
        nbytes = self._whole_bytes(0) * max(self._nodes(0, host) for host in hosts) * (len(hosts) - 1)
        near = max(sum(self.hosts[w] == host for w in workers) for host in hosts)
        return latency + nbytes / min(bandwidth, near / BUSY_BYTE), nbytes * BUSY_BYTE / near

    @cached_property
    def values(self) -> float:
        """Seconds until new parameters are on every host, where hosts share the update."""
        found = [0.0]
        if self.stale:
            return 0.0
        for number, stage in enumerate(self.placed.stages):
            hosts = self._hosts_of(stage.workers)
            if len(hosts) > 2:
                link = self._slowest(stage.workers)
                whole = self._whole_bytes(number)
                found.append(link[0] + whole * (len(hosts) - 1) / len(hosts) / link[1])
        return max(found)

    def wired(self) -> int:
        """Bytes between hosts in a step, over all hosts."""
        total = 0.0
        for number, stage in enumerate(self.placed.stages):
            hosts = self._hosts_of(stage.workers)
            if len(hosts) > 1:
                swapped = len(hosts) == 2 or self.stale > 0
                others = len(hosts) - 1 if swapped else (len(hosts) - 1) / len(hosts)
                nodes = sum(self._nodes(number, host) for host in hosts)
                total += self._whole_bytes(number) * nodes * others
                total += 0.0 if swapped else self._whole_bytes(number) * (len(hosts) - 1)
        for segment, part in enumerate(self.placed.parts):
            if part.region is not None:
                sets = [range(self.num_shards)]
                for action in (actions.SliceForward, actions.SliceBackward):
                    total += sum(sum(step.values()) for s in sets for step in self._exchanges(action(s, segment)))
        return int(total + self._crossed())

    def meeting(self, action: actions.SliceForward | actions.SliceBackward) -> float:
        """Seconds of a meeting that its workers wait for the wires."""
        stage = self.placed.stages[self.placed.parts[action.segment].stage]
        if len(self._hosts_of(stage.workers)) < 2:
            return 0.0
        latency, bandwidth = self._slowest(stage.workers)
        return sum(latency + max(out.values()) / bandwidth for out in self._exchanges(action))

    def _exchanges(self, action: actions.SliceForward | actions.SliceBackward) -> Iterator[dict[int, float]]:
        """For each of a meeting's two exchanges: bytes that leave every host."""
        part = self.placed.parts[action.segment]
        assert part.region is not None
        region, stage = self.chain.regions[part.region], self.placed.stages[part.stage]
        ends = [sum(part.slices[: i + 1]) for i in range(len(part.slices))]
        slices = {w: range(end - n, end) for w, end, n in zip(stage.workers, ends, part.slices, strict=True) if n}
        rows = {w: len(set(self.busy.held[part.stage][w]) & set(action.shards)) for w in stage.workers}
        nodes = {w: len(local_plan(own, sum(part.slices)).left) for w, own in slices.items()}
        columns = {w: len(own) / sum(part.slices) for w, own in slices.items()}
        forward = isinstance(action, actions.SliceForward)
        if forward:
            inward = dict.fromkeys(slices, float(region.takes))
            outward = {w: region.makes * (nodes[w] if region.is_summed else columns[w]) for w in slices}
        else:
            inward = {w: region.makes * (1.0 if region.is_summed else columns[w]) for w in slices}
            outward = {w: float(region.takes * nodes[w] * region.gives_gradient) for w in slices}
        to_holders = dict.fromkeys(self._hosts_of(stage.workers), 0.0)
        to_writers = dict(to_holders)
        for writer, count in rows.items():
            for holder in slices:
                if not self._near(writer, holder):
                    to_holders[self.hosts[writer]] += count * inward[holder]
                    to_writers[self.hosts[holder]] += count * outward[holder]
        yield to_holders
        yield to_writers

    def _reduction(self, stage: int) -> float:
        workers = self.placed.stages[stage].workers
        hosts = self._hosts_of(workers)
        if len(hosts) < 2:
            return 0.0
        latency, bandwidth = self._slowest(workers)
        busiest = max(self._nodes(stage, host) for host in hosts)
        others = 1.0 if len(hosts) == 2 else (len(hosts) - 1) / len(hosts)
        near = max(sum(self.hosts[w] == host for w in workers) for host in hosts)
        pace = min(bandwidth, near / BUSY_BYTE)  # no wire is faster than the processors that feed it
        free, hidden = float("-inf"), 0.0
        for burden in self._burdens(stage, min(self.busy.speeds[w] for w in workers)):
            nbytes = burden.nbytes * busiest * others
            begin = max(free, -burden.before_end)
            free = begin + nbytes / pace
            hidden += pace * max(0.0, min(free, 0.0) - begin)  # what is moved before backward's end
        return max(0.0, free) + latency + hidden * BUSY_BYTE / near

    def _burdens(self, stage: int, speed: float) -> Iterator[UnitGradient]:
        """The units of a stage in the order in which their gradients get ready, last one first."""
        table = self.busy.table(self.placed.stages[stage].workers[0])
        parts: list[PlanSegment] = [part for part in self.placed.parts if part.stage == stage]
        segments = {id(part): number for number, part in enumerate(self.placed.parts)}
        left = 0.0
        found = []
        for part in parts:  # forwards: what comes first in the chain is ready last
            if part.region is not None:
                left += table.regions[part.region].backward
                continue
            own = sum(table.units[i].backward for i in part.units) + sum(table.rests[i].backward for i in part.rests)
            scale = self.busy.dense(segments[id(part)], table).backward / own if own else 0.0
            left += sum(table.rests[i].backward for i in part.rests) * scale
            for i in part.units:
                found.append(UnitGradient(left / speed, self.chain.units[i].parameters))
                left += table.units[i].backward * scale
        return iter(found[::-1])

    def _nodes(self, stage: int, host: int) -> int:
        """The partial sums that a host is left with."""
        if stage not in self._spans:
            self._spans[stage] = self._spans_of(stage)
        shards = self._spans[stage].get(host, range(0))
        return len(local_plan(shards, self.num_shards).left) if shards else 0

    def _spans_of(self, stage: int) -> dict[int, range]:
        """From the first to the last shard of every host that has any."""
        found: dict[int, range] = {}
        for worker, own in self.busy.held[stage].items():
            if own:
                span = found.get(self.hosts[worker], own)
                found[self.hosts[worker]] = range(min(span.start, own.start), max(span.stop, own.stop))
        return found

    def _whole_bytes(self, stage: int) -> int:
        return sum(self.chain.units[i].parameters for p in self.placed.parts if p.stage == stage for i in p.units)

    def _crossed(self) -> float:
        """Bytes over cuts between stages on different hosts."""
        total = 0.0
        for stage in range(len(self.placed.stages) - 1):
            unit = self.chain.units[self.placed.units_of(stage + 1).start]
            here, there = (self._owners(number) for number in (stage, stage + 1))
            for a, b in zip(here, there, strict=True):
                total += (unit.crossing + unit.crossing_back) * (not self._near(a, b))
        return total

    def _owners(self, stage: int) -> list[int]:
        """The worker that computes each shard at a stage."""
        return [worker for worker, own in self.busy.held[stage].items() for _ in own]

    def _near(self, a: int, b: int) -> bool:
        return self.hosts[a] == self.hosts[b]

    def _hosts_of(self, workers: Sequence[int]) -> list[int]:
        return list(dict.fromkeys(self.hosts[w] for w in workers))

    def _slowest(self, workers: Sequence[int]) -> tuple[float, float]:
        """Latency and bandwidth of the slowest link between two hosts of a group."""
        first = {self.hosts[w]: w for w in reversed(workers)}
        links = [self.cluster.link(a, b) for a in first.values() for b in first.values() if a != b]
        return max(link.latency for link in links), min(link.bandwidth for link in links)
