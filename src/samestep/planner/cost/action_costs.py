"""How long every action of a plan keeps its worker busy: measured costs, put together for the plan's segments."""

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

LATER, LATER_FIRST = 0.5, 0.9  # of a Linear's backward a split one leaves so much: one of two products; of the
# network's first layer, whose input needs no gradient, all but the bias

BUSY_BYTE = 1.2e-9  # seconds of processor time per byte, sending and getting together (gloo; benchmarks/two_hosts)


class ActionCosts:
    """Busy seconds of every action of one plan; what waits for wires is in `host_traffic.py`."""

    def __init__(self, placed: PlanSegments, costs: MeasuredCosts, cluster: Cluster, num_shards: int) -> None:
        self.placed, self.plan, self.chain, self.costs = placed, placed.plan, placed.chain, costs
        self.num_shards = num_shards
        self.hosts = cluster.hosts_of_workers()[: self.plan.workers]
        self.speeds = cluster.speeds[: self.plan.workers]
        self.held = placed.held(num_shards)
        self._dense: dict[tuple[int, int], Pair] = {}
        self._known: dict[tuple[int, type[Action], Action], float] = {}  # actions of two classes have the same hash
        self._adds: dict[range, list[int]] = {}  # by a worker's shards: what each one's gradient is added to
        self._tables = self._tables_of_workers()

    def _tables_of_workers(self) -> list[Table]:
        near = Counter(self.hosts)
        tables = {count: self.costs.table(count) for count in set(near.values())}
        return [tables[near[host]] for host in self.hosts]

    def table(self, rank: int) -> Table:
        return self._tables[rank]

    def skew(self, rank: int) -> float:
        """What workers wait for one another because no two steps take the same time."""
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
        """A shard through a dense segment, its gradients not added to others'."""
        key = segment, table.workers
        if key not in self._dense:
            self._dense[key] = table.whole if self.placed.is_uncut else self._summed(self.placed.parts[segment], table)
        return self._dense[key]

    def _summed(self, part: PlanSegment, table: Table) -> Pair:
        pieces = [table.units[i] for i in part.units] + [table.rests[i] for i in part.rests]
        found = Pair(sum(p.forward for p in pieces), sum(p.backward for p in pieces))
        merged = max(0, len(part.units) - 1)  # cells that the probe had for themselves
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
            return self._later(self.placed.parts[action.segment], table)
        if isinstance(action, actions.SliceForward | actions.SliceBackward):
            return self._region(rank, action, table)
        if isinstance(action, actions.Send | actions.SendGradient | actions.Receive | actions.ReceiveGradient):
            return self._message(rank, action)
        return self._tail(rank, action, table)

    def _message(
        self, rank: int, action: actions.Send | actions.SendGradient | actions.Receive | actions.ReceiveGradient
    ) -> float:
        sends, nbytes = isinstance(action, actions.Send | actions.SendGradient), self.placed.crossing(action)
        passing = self.costs.passing
        if self.hosts[rank] != self.hosts[action.peer]:
            return (passing.far_send if sends else passing.far_receive) + BUSY_BYTE / 2 * nbytes
        if sends:
            return passing.send + passing.send_byte * nbytes
        return passing.receive + passing.receive_byte * nbytes

    def _backward(self, rank: int, action: actions.Backward, table: Table) -> float:
        part = self.placed.parts[action.segment]
        own = self.held[part.stage][rank]
        adds = self._adds_of(own)[action.shard - own.start]
        nbytes = sum(self.chain.units[i].parameters for i in part.units)
        later = self._later(part, table) if self.plan.splits_backward(part.stage) else 0.0
        return self.dense(action.segment, table).backward - later + adds * nbytes * table.add

    def _later(self, part: PlanSegment, table: Table) -> float:
        """Seconds of a shard's backward that a split one leaves for later: products for the weights of Linears."""
        linear = [i for i in part.units if self.chain.units[i].signature.startswith("Linear(")]
        return sum((LATER if i else LATER_FIRST) * table.units[i].backward for i in linear)

    def _adds_of(self, own: range) -> list[int]:
        if own not in self._adds:
            self._adds[own] = [len(fold.into) for fold in local_plan(own, self.num_shards).folds]
        return self._adds[own]

    def _region(self, rank: int, action: actions.SliceForward | actions.SliceBackward, table: Table) -> float:
        """Measured with some slices on a worker; each more or less costs as much as one does a worker alone."""
        part = self.placed.parts[action.segment]
        assert part.region is not None
        own = part.slices[self.placed.stages[part.stage].workers.index(rank)]
        name = "forward" if isinstance(action, actions.SliceForward) else "backward"
        slope: float = getattr(self.costs.slope(part.region), name)
        measured: float = getattr(table.regions[part.region], name)
        share = len(action.shards) / self.num_shards
        return max(0.0, measured + (own - table.own[part.region]) * slope) * share

    def _tail(self, rank: int, action: Action, table: Table) -> float:
        if isinstance(action, actions.Reduce):
            return sum(owned * nodes * self._reading(table) for owned, nodes in self.owned[rank])
        if isinstance(action, actions.Update):
            return sum(owned for owned, _ in self.owned[rank]) * table.update
        fixed = {actions.Agree: table.agree, actions.MergeBuffers: table.merge, actions.Clip: table.clip}
        return table.publish if isinstance(action, actions.Publish) else fixed.get(type(action), 0.0)

    def _reading(self, table: Table) -> float:
        """Seconds per byte and summand. A worker alone on its host adds what came from others like its own shards'."""
        return table.reduce or self.costs.together.reduce or table.add

    @cached_property
    def owned(self) -> list[list[tuple[float, int]]]:
        """Per worker: bytes of parameters that it updates, and how many partial sums of them it reads."""
        found: list[list[tuple[float, int]]] = [[] for _ in range(self.plan.workers)]
        for number, stage in enumerate(self.placed.stages):
            here = [part for part in self.placed.parts if part.stage == number]
            whole = sum(self.chain.units[i].parameters for part in here for i in part.units)
            nodes = sum(len(local_plan(own, self.num_shards).left) for own in self.held[number].values())
            near = Counter(self.hosts[rank] for rank in stage.workers)
            for rank in stage.workers:
                # Among how many the update is dealt out: two hosts each make it, more share it, unless it is stale.
                alone = len(near) == 2 or steps_stale(self.plan)
                share = near[self.hosts[rank]] if alone else len(stage.workers)
                found[rank].append((whole / share, nodes if len(stage.workers) > 1 else 0))
            for part in here:
                self._add_slices(part, stage.workers, found)
        return found

    def _add_slices(self, part: PlanSegment, workers: Sequence[int], found: list[list[tuple[float, int]]]) -> None:
        if part.region is not None:
            nbytes = self.chain.regions[part.region].parameters
            for rank, count in zip(workers, part.slices, strict=True):
                found[rank].append((nbytes * count / sum(part.slices), 0))
