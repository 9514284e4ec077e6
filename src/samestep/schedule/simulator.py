"""The simulator: when every action of a step happens, and which worker waits for which.

Every ordered pair of workers has a channel. A send puts its message in, and waits while `capacity` messages there
have not been received; a receive takes the message with its name, in whatever order they came. At a meeting (sliced
segments; Agree to Publish) all participants wait for the last one.

    worker 0   Send(0) ------\\            Receive(0) takes it `latency` after it was sent
    worker 1      .   .  Receive(0)

A worker's next action depends on its own list alone, so the outcome does not depend on the order in which the
simulation visits the workers; without a capacity, neither do the times. It takes time linear in the actions.

Messages of a channel follow one another: each occupies it for its `transfer`. A meeting lasts as long as its slowest
member. Reduce, MergeBuffers and Update come after Agree and before Publish, and wait for no other worker.

With stale gradients steps overlap, so several are simulated as one list per worker: a Post occupies the worker's wire
for its `transfer` while the worker continues, and Await(age) waits for all workers' posts. Records of Agree use the
same wire, behind earlier posts. A step by itself awaits posts from before the simulation, which have arrived.

    worker 0   F B Agree Post          F B Agree Await(1) Reduce Post ...
    its wire              |---- sums of step 0 ----|             |---- sums of step 1 ----|
"""

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from samestep.schedule import actions
from samestep.schedule.actions import Action, Schedule
from samestep.schedule.grid import Grid
from samestep.schedule.places import places

TAIL = (
    actions.Agree,
    actions.Reduce,
    actions.MergeBuffers,
    actions.Clip,
    actions.Update,
    actions.Publish,
    actions.Post,
    actions.Await,
)
MEETINGS = (actions.SliceForward, actions.SliceBackward, actions.Agree, actions.Clip, actions.Publish)

Name = tuple[type, int, int]  # of a message: activation or gradient, shard, stage


@dataclass(frozen=True)
class ActionSpan:
    """When an action began and ended."""

    start: float
    stop: float


@dataclass(frozen=True)
class BlockedWorker:
    """A worker that cannot continue: it is at `position` of its list, and `blockers` would have to act first."""

    position: int
    action: Action
    blockers: tuple[int, ...]


@dataclass(frozen=True)
class Simulation:
    spans: tuple[tuple[ActionSpan, ...], ...]  # per worker and performed action
    waits: dict[int, BlockedWorker]  # the workers that did not finish their lists
    in_flight: dict[tuple[int, int], int]  # per channel (from, to), the most messages not yet received


Cost = Callable[[int, Action], float]  # seconds of a worker's action


def no_cost(rank: int, action: Action) -> float:
    """The cost of an action where time does not matter."""
    return 0.0


def simulate(
    grid: Grid,
    schedules: Sequence[Schedule],
    capacity: int | None = None,
    cost: Cost = no_cost,
    latency: float = 0.0,
    transfer: Cost = no_cost,
) -> Simulation:
    """Run the lists of all workers until none can continue.

    cost: seconds that a worker is busy with an action. transfer: seconds that a sent message occupies its
    channel. latency: seconds until it arrives after that.
    """
    world = SimulatedWorkers(grid, schedules, capacity, cost, latency, transfer)
    while world.awake:
        rank = world.awake.popleft()
        while (action := world.action_of(rank)) is not None and world.perform(rank, action):
            pass
    waits = {rank: world.wait_of(rank) for rank in range(len(schedules)) if world.action_of(rank) is not None}
    return Simulation(tuple(map(tuple, world.spans)), waits, world.in_flight)


class SimulatedWorkers:
    def __init__(
        self,
        grid: Grid,
        schedules: Sequence[Schedule],
        capacity: int | None,
        cost: Cost,
        latency: float,
        transfer: Cost,
    ) -> None:
        self.schedules, self.capacity = schedules, capacity
        self.cost, self.latency, self.transfer = cost, latency, transfer
        where = places(grid)
        self.groups = [grid.stages[stage].workers for stage in where.stage_of]  # per segment
        self.everyone = tuple(range(len(schedules)))
        self.spans: list[list[ActionSpan]] = [[] for _ in schedules]
        self.clock = [0.0] * len(schedules)
        self.channels: dict[tuple[int, int], dict[Name, float]] = {}  # arrival times of messages not yet received
        self.occupied: dict[tuple[int, int], float] = {}  # the time until which a channel is busy with messages
        self.in_flight: dict[tuple[int, int], int] = {}
        self.arrived: dict[Action, list[int]] = {}  # workers that are at a meeting already
        self.posts: list[list[float]] = [[] for _ in schedules]  # when each worker's posts arrive, in order
        self.awake = deque(self.everyone)

    def action_of(self, rank: int) -> Action | None:
        """The worker's current action; it has a span for every performed one."""
        position = len(self.spans[rank])
        return self.schedules[rank][position] if position < len(self.schedules[rank]) else None

    def perform(self, rank: int, action: Action) -> bool:
        """Perform the action, or return False: another worker must act first, and will wake this one."""
        if isinstance(action, actions.Send | actions.SendGradient):
            return self.send(rank, action)
        if isinstance(action, actions.Receive | actions.ReceiveGradient):
            return self.receive(rank, action)
        if isinstance(action, MEETINGS):
            return self.meet(rank, action)
        if isinstance(action, actions.Await):
            return self.await_posts(rank, action)
        if isinstance(action, actions.Post):
            self.post(rank, action)
            return True
        self.finish(rank, action, self.clock[rank], self.cost(rank, action))
        return True

    def finish(self, rank: int, action: Action, start: float, cost: float) -> None:
        self.clock[rank] = start + cost
        self.spans[rank].append(ActionSpan(start, self.clock[rank]))

    def send(self, rank: int, action: actions.Send | actions.SendGradient) -> bool:
        channel = self.channels.setdefault((rank, action.peer), {})
        if self.capacity is not None and len(channel) >= self.capacity:
            return False
        self.finish(rank, action, self.clock[rank], self.cost(rank, action))
        begin = max(self.clock[rank], self.occupied.get((rank, action.peer), 0.0))
        self.occupied[rank, action.peer] = begin + self.transfer(rank, action)
        channel[message_name(action)] = self.occupied[rank, action.peer] + self.latency
        self.in_flight[rank, action.peer] = max(len(channel), self.in_flight.get((rank, action.peer), 0))
        self.awake.append(action.peer)
        return True

    def receive(self, rank: int, action: actions.Receive | actions.ReceiveGradient) -> bool:
        channel = self.channels.setdefault((action.peer, rank), {})
        arrival = channel.pop(message_name(action), None)
        if arrival is None:
            return False
        self.finish(rank, action, max(self.clock[rank], arrival), self.cost(rank, action))
        self.awake.append(action.peer)
        return True

    def post(self, rank: int, action: actions.Post) -> None:
        self.finish(rank, action, self.clock[rank], self.cost(rank, action))
        begin = max(self.clock[rank], self.posted(rank))
        self.posts[rank].append(begin + self.transfer(rank, action) + self.latency)
        self.awake.extend(member for member in self.everyone if member != rank)

    def posted(self, rank: int) -> float:
        """The time when a worker's wire has carried all its posts."""
        return self.posts[rank][-1] - self.latency if self.posts[rank] else 0.0

    def await_posts(self, rank: int, action: actions.Await) -> bool:
        if self.late(rank, action):
            return False
        number = self.number_of(rank, action)
        arrival = max(posts[number] for posts in self.posts) if number >= 0 else 0.0
        self.finish(rank, action, max(self.clock[rank], arrival), self.cost(rank, action))
        return True

    def number_of(self, rank: int, action: actions.Await) -> int:
        """The number of the post that a worker awaits of each; below 0: one from before the simulation."""
        return len(self.posts[rank]) - action.age

    def late(self, rank: int, action: actions.Await) -> tuple[int, ...]:
        """The workers that have not posted yet."""
        number = self.number_of(rank, action)
        return tuple(member for member in self.everyone if len(self.posts[member]) <= number)

    def meet(self, rank: int, action: Action) -> bool:
        group, arrived = self.group_of(action), self.arrived.setdefault(action, [])
        if rank not in arrived:
            arrived.append(rank)
        if len(arrived) < len(group):
            return False
        del self.arrived[action]
        start, cost = max(self.clock[member] for member in group), max(self.cost(member, action) for member in group)
        if isinstance(action, actions.Agree | actions.Clip):
            start = max(start, *(self.posted(member) for member in group))
        for member in group:
            self.finish(member, action, start, cost)
            if member != rank:
                self.awake.append(member)
        return True

    def group_of(self, action: Action) -> tuple[int, ...]:
        """The participants of a meeting."""
        return (
            self.groups[action.segment]
            if isinstance(action, actions.SliceForward | actions.SliceBackward)
            else self.everyone
        )

    def wait_of(self, rank: int) -> BlockedWorker:
        action = self.action_of(rank)
        assert action is not None
        if isinstance(action, actions.Send | actions.SendGradient | actions.Receive | actions.ReceiveGradient):
            blockers: tuple[int, ...] = (action.peer,)
        elif isinstance(action, actions.Await):
            blockers = self.late(rank, action)
        else:
            arrived = self.arrived.get(action, [])
            blockers = tuple(member for member in self.group_of(action) if member not in arrived)
        return BlockedWorker(len(self.spans[rank]), action, blockers)


def message_name(action: actions.Send | actions.Receive | actions.SendGradient | actions.ReceiveGradient) -> Name:
    forward = isinstance(action, actions.Send | actions.Receive)
    return actions.Send if forward else actions.SendGradient, action.shard, action.stage
