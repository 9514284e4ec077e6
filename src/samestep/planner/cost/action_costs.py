"""Busy seconds of a plan's actions: measured costs, combined for the plan's segments."""

from collections import Counter
from collections.abc import Sequence
from functools import cached_property

from samestep.numerics.reduction_tree import local_plan
from samestep.plan.cluster import Cluster
from samestep.planner.cost.measured_costs import MeasuredCosts, Pair, Table
from samestep.planner.cost.plan_segments import PlanSegment, PlanSegments
from samestep.schedule import actions
from samestep.schedule.actions import Action
from samestep.sync.staleness import steps_stale

# The share of a Linear's backward that a split backward defers: one of two products; in the network's first layer,
# whose input needs no gradient, all but the bias.
DEFERRED, DEFERRED_FIRST = 0.5, 0.9

BUSY_BYTE = 1.2e-9  # seconds of processor time per byte, sending and receiving together (gloo; benchmarks/two_hosts)


class ActionCosts:
    """Busy seconds of every action of one plan; waiting for other hosts is in `host_traffic.py`."""

    def __init__(self, segments: PlanSegments, costs: MeasuredCosts, cluster: Cluster, num_shards: int) -> None:
        self.segments, self.plan, self.chain, self.costs = segments, segments.plan, segments.chain, costs
        self.num_shards = num_shards
        self.hosts = cluster.hosts_of_workers()[: self.plan.workers]
        self.speeds = cluster.speeds[: self.plan.workers]
        self.held = segments.held(num_shards)
        self._dense: dict[tuple[int, int], Pair] = {}
        self._known: dict[tuple[int, type[Action], Action], float] = {}  # actions of two classes have the same hash
        self._adds: dict[range, list[int]] = {}  # by a worker's shards: what each one's gradient is added to
        on_host = Counter(self.hosts)
        tables = {count: costs.table(count) for count in set(on_host.values())}
        self._tables = [tables[on_host[host]] for host in self.hosts]

    def table(self, rank: int) -> Table:
        return self._tables[rank]

    def skew(self, rank: int) -> float:
        """Seconds that a worker waits for others because no two steps take the same time."""
        if self.plan.workers == 1:
            return 0.0
        table = self.table(rank) if self.table(rank).workers > 1 else self.costs.together
        own = max(len(held.get(rank, ())) for held in self.held)
        return table.skew * own * (table.whole.forward + table.whole.backward) / self.speeds[rank]

    def seconds(self, rank: int, action: Action) -> float:
        key = rank, type(action), action
        if (known := self._known.get(key)) is not None:
            return known
        self._known[key] = self._busy(rank, action) / self.speeds[rank]
        return self._known[key]

    def dense(self, segment: int, table: Table) -> Pair:
        """Seconds of a shard through a dense segment, without adding its gradients to those of other shards."""
        key = segment, table.workers
        if key not in self._dense:
            self._dense[key] = (
                table.whole if self.segments.is_uncut else self._summed(self.segments.parts[segment], table)
            )
        return self._dense[key]

    def _summed(self, part: PlanSegment, table: Table) -> Pair:
        pieces = [table.units[i] for i in part.units] + [table.rests[i] for i in part.rests]
        found = Pair(sum(p.forward for p in pieces), sum(p.backward for p in pieces))
        merged = max(0, len(part.units) - 1)  # segments of its own that the probe had and the plan has not
        least = Pair(*(max(getattr(p, name) for p in pieces) if pieces else 0.0 for name in ("forward", "backward")))
        return Pair(
            max(least.forward, found.forward - merged * table.cell.forward),
            max(least.backward, found.backward - merged * table.cell.backward),
        )

    def _busy(self, rank: int, action: Action) -> float:
        table = self.table(rank)
        if isinstance(action, actions.Load):
            return table.load * len({shard for held in self.held for shard in held.get(rank, ())})
        if isinstance(action, actions.Forward | actions.Recompute):
            return self.dense(action.segment, table).forward
        if isinstance(action, actions.Backward):
            return self._backward(rank, action, table)
        if isinstance(action, actions.Lockstep):
            return len(action.shards) * (table.whole.forward + table.whole.backward)
        if isinstance(action, actions.BackwardWeight):
            return self._deferred(self.segments.parts[action.segment], table)
        if isinstance(action, actions.SliceForward | actions.SliceBackward):
            return self._region(rank, action, table)
        if isinstance(action, actions.CutMessage):
            return self._message(rank, action)
        return self._tail(rank, action, table)

    def _message(
        self, rank: int, action: actions.Send | actions.SendGradient | actions.Receive | actions.ReceiveGradient
    ) -> float:
        sends, nbytes = isinstance(action, actions.Send | actions.SendGradient), self.segments.crossing(action)
        passing = self.costs.passing
        if self.hosts[rank] != self.hosts[action.peer]:
            return (passing.far_send if sends else passing.far_receive) + BUSY_BYTE / 2 * nbytes
        if sends:
            return passing.send + passing.send_byte * nbytes
        return passing.receive + passing.receive_byte * nbytes

    def _backward(self, rank: int, action: actions.Backward, table: Table) -> float:
        part = self.segments.parts[action.segment]
        own = self.held[part.stage][rank]
        adds = self._adds_of(own)[action.shard - own.start]
        nbytes = sum(self.chain.units[i].parameters for i in part.units)
        deferred = self._deferred(part, table) if self.plan.splits_backward(part.stage) else 0.0
        return self.dense(action.segment, table).backward - deferred + adds * nbytes * table.add

    def _deferred(self, part: PlanSegment, table: Table) -> float:
        """Seconds of a shard's backward that a split backward defers: the products for the weights of Linears."""
        linear = [i for i in part.units if self.chain.units[i].signature.startswith("Linear(")]
        return sum((DEFERRED if i else DEFERRED_FIRST) * table.units[i].backward for i in linear)

    def _adds_of(self, own: range) -> list[int]:
        if own not in self._adds:
            self._adds[own] = [len(fold.into) for fold in local_plan(own, self.num_shards).folds]
        return self._adds[own]

    def _region(self, rank: int, action: actions.SliceForward | actions.SliceBackward, table: Table) -> float:
        """Seconds of a worker's slices: those measured with `table.own` slices, plus one slice's for each more."""
        part = self.segments.parts[action.segment]
        assert part.region is not None
        own = part.slices[self.segments.stages[part.stage].workers.index(rank)]
        name = "forward" if isinstance(action, actions.SliceForward) else "backward"
        slope: float = getattr(self.costs.slope(part.region), name)
        measured: float = getattr(table.regions[part.region], name)
        share = len(action.shards) / self.num_shards
        return max(0.0, measured + (own - table.own[part.region]) * slope) * share

    def _tail(self, rank: int, action: Action, table: Table) -> float:
        if isinstance(action, actions.Reduce):
            return sum(owned * nodes * self._seconds_per_summand(table) for owned, nodes in self.owned[rank])
        if isinstance(action, actions.Update):
            return sum(owned for owned, _ in self.owned[rank]) * table.update
        fixed = {actions.Agree: table.agree, actions.MergeBuffers: table.merge, actions.Clip: table.clip}
        return table.publish if isinstance(action, actions.Publish) else fixed.get(type(action), 0.0)

    def _seconds_per_summand(self, table: Table) -> float:
        """Seconds per byte and summand. A worker alone on its host adds other hosts' sums as fast as its own."""
        return table.reduce or self.costs.together.reduce or table.add

    @cached_property
    def owned(self) -> list[list[tuple[float, int]]]:
        """Bytes of parameters that each worker updates, and the number of partial sums of them that it reads."""
        found: list[list[tuple[float, int]]] = [[] for _ in range(self.plan.workers)]
        for number, stage in enumerate(self.segments.stages):
            here = [part for part in self.segments.parts if part.stage == number]
            whole = sum(self.chain.units[i].parameters for part in here for i in part.units)
            nodes = sum(len(local_plan(own, self.num_shards).left) for own in self.held[number].values())
            on_host = Counter(self.hosts[rank] for rank in stage.workers)
            for rank in stage.workers:
                # Two hosts each make the whole update; more hosts share it, unless gradients are stale.
                each_host = len(on_host) == 2 or steps_stale(self.plan)
                share = on_host[self.hosts[rank]] if each_host else len(stage.workers)
                found[rank].append((whole / share, nodes if len(stage.workers) > 1 else 0))
            for part in here:
                self._add_slices(part, stage.workers, found)
        return found

    def _add_slices(self, part: PlanSegment, workers: Sequence[int], found: list[list[tuple[float, int]]]) -> None:
        if part.region is not None:
            nbytes = self.chain.regions[part.region].parameters
            for rank, count in zip(workers, part.slices, strict=True):
                found[rank].append((nbytes * count / sum(part.slices), 0))
