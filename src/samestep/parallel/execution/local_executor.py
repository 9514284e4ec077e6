"""The executor of local(H): logical workers take steps of their own, each with its own parameters, and meet at times.

One model computes for all logical workers of this worker: its parameters are bound to the memory of the one whose
shards are computed. Between meetings no worker waits for another: losses and wishes to stop are exchanged at the
meetings (`replica_meeting.py`).

Outside of steps the model is bound to `common`. `share_values` brings the mean there without touching any replica.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from torch import Tensor

from samestep.job.objective import LossFacts
from samestep.numerics.numerics import num_shards_of, shard_rows
from samestep.numerics.reduction_tree import local_plan
from samestep.parallel.execution.agreement import WorkerRecord
from samestep.parallel.execution.executor import Executor, StepSchedule, StepState
from samestep.parallel.execution.local_state import LocalState
from samestep.parallel.execution.replica_meeting import Replica, ReplicaMeeting
from samestep.parallel.gradients.clipping import clip
from samestep.parallel.gradients.sharded_update import ShardedUpdate
from samestep.schedule import actions
from samestep.schedule.local_steps import local_step_schedule
from samestep.sync.logical_workers import Logical
from samestep.system.device import to_device


@dataclass
class StepFacts:
    """The facts of a step's shards, which other workers learn at the next meeting."""

    number: int
    rows: list[int]
    facts: dict[int, LossFacts] = field(default_factory=dict)


@dataclass(kw_only=True)
class LocalExecutor(Executor):
    """One worker's logical workers, and how each action uses them."""

    logical: Logical
    replicas: Sequence[Replica]
    meeting: ReplicaMeeting

    def __post_init__(self) -> None:
        self._own = self.logical.of(self.transport.rank)
        self._working: Replica | None = None
        self._step = StepState(0, [])  # of the logical worker that works
        self._unsettled: list[StepFacts] = []  # since the last meeting
        self._bind(self.meeting.common)

    # A step

    def step_schedule(self, rows: int, number: int) -> StepSchedule:
        """Logical workers meet in some steps only."""
        sizes = [len(part) for part in shard_rows(rows, num_shards_of(rows, self.plan.numerics.shards))]
        shards = self.logical.all_shards(len(sizes))
        return sizes, local_step_schedule(self._own, shards, meets=self.logical.meets(number))

    def load(self, action: actions.Load, state: StepState) -> None:
        state.batches = {shard: to_device(self.next_batch(), self.device) for shard in self._work(state).shards}
        self._unsettled.append(StepFacts(state.number, state.rows))
        for worker, shards in enumerate(self.logical.all_shards(len(state.rows))):
            self.meeting.missed[worker] |= not shards
        state.present = bytes(len(self.layout.entries))
        self.meeting.is_common = False

    def forward(self, action: actions.Forward, state: StepState) -> None:
        replica = self._replica_of(action.shard)
        if self._working is not replica:
            self._enter(replica, state)
        super().forward(action, state)

    def backward(self, action: actions.Backward, state: StepState) -> None:
        own, step = self.logical.shards_of(self._replica_of(action.shard).number, len(state.rows)), self._step
        loss, place = state.losses.pop(action.shard), action.shard - own.start
        self.gradients.begin_shard(action.shard, local_plan(range(len(own)), len(own)).folds[place])
        self.objective.seeded(loss, step.batch_rows).backward()  # type: ignore[no-untyped-call]
        self.gradients.end_shard()
        step.changed[place] = self.buffers.end_shard(place)
        step.facts[place] = loss.facts

    def local_step(self, action: actions.LocalStep, state: StepState) -> None:
        """Take a logical worker's step. One without rows leaves its parameters alone, as one without gradient does;
        its scheduler advances."""
        replica, own = self.replicas[action.worker - self._own.start], self._step
        if self._working is replica:
            shards = self.logical.shards_of(action.worker, len(state.rows))
            self._settle_loss([own.facts[place] for place in range(len(shards))], own)
            own.present = bytes(self.gradients.present)
            self.reduce(actions.Reduce(), own)
            self.merge_buffers(actions.MergeBuffers(), own)
            if self.clip_grad_norm is not None:
                clip(self._owned_gradients(own), self.clip_grad_norm)
            self.step(actions.Update(), own)
            self.gradients.drop()
            self._unsettled[-1].facts |= {shard: own.facts[shard - shards.start] for shard in shards}
            state.present = bytes(a | b for a, b in zip(state.present, own.present, strict=True))
        elif replica.scheduler is not None:
            replica.scheduler.step()  # type: ignore[attr-defined]
        replica.taken += 1
        self._working = None
        if action.worker == self._own[-1]:
            self._bind(self.meeting.common)
            self.meeting.buffers.rebind(self.meeting.buffers.values)

    # A meeting

    def agree(self, action: actions.Agree, state: StepState) -> None:
        """Every worker learns the losses since the last meeting; the exchange also publishes parameters and buffers."""
        state.stop = any(record.stop for record in self._gather(stop=state.stop_asked))
        state.known = self._settled()

    def average(self, action: actions.Average, state: StepState) -> None:
        self.meeting.average()

    def publish(self, action: actions.Publish, state: StepState) -> None:
        self.meeting.spread()
        self.meeting.end()

    def share_values(self, *, everywhere: bool = False) -> None:
        """Let every worker see the mean, as evaluation and saving need it. The logical workers do not move."""
        if self.meeting.is_common:
            self.transport.fence()
            return
        self._gather()
        self.meeting.average()
        self.meeting.spread()

    def settle(self) -> Sequence[tuple[int, float]]:
        if self._unsettled:
            self._exchange()
        return self._settled()

    def report(self) -> dict[str, float]:
        return self.meeting.observed.over_all(self.transport.exchange)

    def optimizers(self) -> list[tuple[ShardedUpdate, object]]:
        return [(replica.update, replica.scheduler) for replica in self.replicas]

    def state(self) -> LocalState:
        return LocalState(self.meeting)

    # Parts of the actions

    def _replica_of(self, shard: int) -> Replica:
        share = self.logical.shards // self.logical.workers
        return self.replicas[shard // share - self._own.start]

    def _enter(self, replica: Replica, state: StepState) -> None:
        """Bind the model to a logical worker's parameters and buffers."""
        since = self.logical.steps_since_meeting(state.number)
        self.meeting.observed.read(replica.number, replica.taken % self.logical.policy.steps, since)
        own = self.logical.shards_of(replica.number, len(state.rows))
        rows = [state.rows[shard] for shard in own]
        self._working, self._step = replica, StepState(state.number, rows, sum(rows))
        self._bind(replica.memory)
        self.update, self.scheduler, self.buffers = replica.update, replica.scheduler, replica.buffers
        self.buffers.forget(range(len(self.buffers.values)))
        self.gradients.begin_step([own] * len(self.layout.entries))

    def _bind(self, memory: Tensor) -> None:
        for i, entry in enumerate(self.layout.entries):
            entry.param.data = self.layout.view(memory, i if entry.tied_to is None else entry.tied_to)

    def _gather(self, *, stop: bool = False) -> list[WorkerRecord]:
        """Publish sums of parameters, and buffers, and exchange records."""
        self.meeting.sum_own()
        records = self._exchange(stop=stop, buffers=self.meeting.buffer_record())
        self.meeting.merge_buffers(records)
        return records

    def _exchange(
        self, *, stop: bool = False, buffers: Mapping[int, tuple[bytes, bytes]] | None = None
    ) -> list[WorkerRecord]:
        """Exchange the facts of the steps since the last meeting."""
        steps = {step.number: step for step in self._unsettled}
        rank = self.transport.rank
        facts = {
            (step.number, shard): step.facts[shard]
            for step in self._unsettled
            for shard in self.plan.shards_of(rank, len(step.rows))
        }
        own = WorkerRecord(
            stop=stop, taken=[replica.taken for replica in self.replicas], facts=facts, buffers=buffers or {}
        )
        records = self.alike.exchanged(own, self.transport, max(steps, default=0))
        for record in records:
            for (number, shard), found in record.facts.items():
                steps[number].facts[shard] = found
        self.meeting.observed.agreed([taken for record in records for taken in record.taken])
        return records

    def _settled(self) -> list[tuple[int, float]]:
        """The losses of the steps since the last meeting, each once."""
        found = []
        for step in self._unsettled:
            state = StepState(step.number, step.rows, sum(step.rows))
            self._settle_loss([step.facts[shard] for shard in range(len(step.rows))], state)
            found.append((step.number, state.loss))
        self._unsettled = []
        return found
