"""One worker's audits: every K steps, workers compare what must be equal; in between, memory at rest is watched.

    every K steps    fingerprints of all replicas, of settings, of what was done with others    (all workers meet)
    every step       memory at rest, or in as many steps as take `SHARE` of the time            (each for itself)

A difference between replicas may be gone after a few steps, and what it has done to the sums stays: a flipped bit in
a momentum decays, statistics are averaged. Hence the watch. Who caused a difference: blame.py.
"""

import json
import statistics
import struct
import time
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from samestep.audit.blame import SETTINGS, Blame
from samestep.audit.differences import differing, packed
from samestep.audit.fingerprint import key_of
from samestep.audit.memory_watch import Change, MemoryWatch, state_parts
from samestep.audit.replay import Replay
from samestep.audit.replicas import chunk_fingerprints, steady_fingerprints
from samestep.audit.watch_pace import WatchPace
from samestep.errors import Disagreement
from samestep.job.job import Job
from samestep.parallel.execution.attendant import Attendant
from samestep.parallel.execution.executor import Executor
from samestep.parallel.execution.step import StepResult
from samestep.plan.plan import workers_text
from samestep.schedule import actions
from samestep.setup.laid_out_model import LaidOutModel
from samestep.state import snapshot

TOGETHER = "the actions done together"
SHARED_KINDS = frozenset(
    {
        actions.Send,
        actions.SendGradient,
        actions.Receive,
        actions.ReceiveGradient,
        actions.Agree,
        actions.Reduce,
        actions.MergeBuffers,
        actions.Clip,
        actions.Update,
        actions.Publish,
    }
)
FIRST = 8  # steps, after which workers know what the watch costs
WISH = struct.Struct("<d")  # the share of steps that a worker can afford to watch
MOST = 4096  # actions that are kept as such


def audits_of(
    executor: Executor, job: Job, prepared: LaidOutModel, parameters: Tensor, every: int, step: int
) -> list["Audit"]:
    """The audit of a run, if it has one: none where there is nothing to audit, or where that is not supported.

    One worker has nobody to compare with, and its memory is its user's. Between the syncs of a policy, workers
    differ. Under a memory limit a worker must not look at others' memory; on GPUs, looking costs waiting.
    """
    is_exact = executor.plan.numerics.policy is None and executor.plan.workers > 1
    if not every or not is_exact or prepared.initial is not None or parameters.device.type != "cpu":
        return []
    return [Audit(executor, job, parameters, every, step)]


class Audit(Attendant):
    """One worker's part in all audits of a run. every: steps from one audit to the next."""

    def __init__(self, executor: Executor, job: Job, parameters: Tensor, every: int, step: int) -> None:
        """parameters: the memory of this host's copy. step: optimizer steps done."""
        self.executor, self.job, self.every = executor, job, every
        self.count = 0  # audits held
        self.watched = 0  # steps in which memory at rest was watched
        self.watch = MemoryWatch(executor, parameters)
        self._is_one_host = len(set(executor.transport.hosts)) == 1
        self._last_good, self._step = step, step
        self._done: list[actions.Action] = []
        self._deeds: dict[str, int] = {}  # checksums of what was done before, since the last audit
        self.pace = WatchPace(every)
        can_be_rebuilt = job.data is not None and not isinstance(job.model, nn.Module)
        self.replay = Replay(job, executor.plan) if can_be_rebuilt else None
        self._kept_for, self._stepped_at = 0.0, 0.0  # seconds; a time
        self._agree_at = step + FIRST
        self._good = dict(steady_fingerprints(executor))  # fingerprints of the last good audit
        self._has_begun = False

    def before_action(self, action: actions.Action) -> None:
        """Check memory at rest before the workers meet, and keep what is at rest after the update."""
        if not self._has_begun:
            self._has_begun = True
            self.watch.keep(self._step)
        kind = type(action)
        if kind is actions.Agree:
            self.before_state_is_read()
        elif kind is actions.Publish and self._is_one_host:
            self._keep(self._step + 1)  # before others may go on
        if kind in SHARED_KINDS:  # what a worker does by itself need not be equal
            self._done.append(action)
            if len(self._done) > MOST:
                self._fold()

    def after_step(self, result: StepResult, rows: int) -> None:
        """Compare with the others if an audit is due. Raises Disagreement."""
        self._step = step = result.number + 1
        now = time.perf_counter()
        if self._stepped_at:
            self.pace.steps.append(now - self._stepped_at)
        self._stepped_at = now
        is_due = step % self.every == 0
        if is_due:
            began = time.thread_time()  # of the processor: waiting for others is not what it costs
            self.compare()
            self.pace.audits.append(time.thread_time() - began)
        elif step == self._agree_at:
            self._set_pace(self.executor.transport.exchange(WISH.pack(self.pace.wish())))
        if self.watch.step is None:
            self._keep(step)

    def _keep(self, step: int) -> None:
        """Watch the next step, if it is one of those to be watched."""
        if step % self.every == 0 or self.pace.watches_after(step):
            began = time.thread_time()
            self.watch.keep(step)
            self._kept_for = time.thread_time() - began

    def _set_pace(self, records: Sequence[bytes]) -> None:
        self.pace.agree([WISH.unpack_from(record)[0] for record in records])

    def before_state_is_read(self) -> None:
        """Raises Disagreement when memory has changed since the last update."""
        if self.watch.step is None:
            return
        began, kept_after = time.thread_time(), self.watch.step
        found = self.watch.check()
        self.watch.forget()
        self.watched += 1
        self.pace.watches.append(self._kept_for + time.thread_time() - began)
        if found is not None:
            raise Disagreement(
                f"audit in step {kept_after}: {found} is no longer what it was after {kept_after} steps: the culprit "
                f"is {self._whose(found)}. Memory that nobody may write to has changed: suspect the machine's memory, "
                "or code that writes to parameters, optimizer state or buffers between updates"
            )

    def _whose(self, found: Change) -> str:
        """The workers that can have written there: a host's workers share one copy of the parameters."""
        rank, hosts = self.executor.transport.rank, self.executor.transport.hosts
        near = [r for r, host in enumerate(hosts) if host == hosts[rank]]
        if found.name.startswith("parameter ") and len(near) > 1:
            return f"in the memory of host {hosts[rank]}, which {workers_text(near)} share"
        return f"worker {rank}, in its own copy"

    def after_restore(self, step: int, root: Path) -> None:
        self.watch.forget_all()
        self._has_begun = False
        self._done.clear()
        self._deeds.clear()
        self._last_good = self._step = step
        self._good = dict(steady_fingerprints(self.executor))
        self.after_save(root)

    def after_save(self, root: Path) -> None:
        if self.replay is not None:
            self.replay.checkpoints = root

    def expect_other_rows(self) -> None:
        """Give up the replay: steps over batches that are not the job's own cannot be repeated."""
        self.replay = None

    def report(self) -> dict[str, Any]:
        return {"audits": self.count}

    def compare(self) -> None:
        """All workers must call it. Raises Disagreement, in all of them, when two hold different values."""
        transport, own = self.executor.transport, dict(self._record())
        records = transport.exchange(WISH.pack(self.pace.wish()) + packed(own))
        self._set_pace(records)
        bad = differing([record[WISH.size :] for record in records])
        if bad:
            seconds = statistics.median(self.pace.steps) if self.pace.steps else 0.0
            raise Blame(
                executor=self.executor,
                job=self.job,
                watch=self.watch,
                step=self._step,
                good=self._good,
                last_good=self._last_good,
                replay=self.replay,
                step_seconds=seconds,
            ).outcome(own, bad)
        self._good = own
        self._done.clear()
        self._deeds.clear()
        self._last_good = self._step
        self.count += 1

    def _record(self) -> Iterator[tuple[str, int]]:
        """Fingerprints by name. Possible causes come before their effects: a wrong momentum makes wrong parameters."""
        yield SETTINGS, key_of(json.dumps(snapshot.values(self.executor, self._step), sort_keys=True))
        self._fold()
        yield from self._deeds.items()
        if not self._is_one_host:
            for part in (*state_parts(self.executor), *self.watch.parameter_parts()):
                yield from chunk_fingerprints(part)
        yield from steady_fingerprints(self.executor)

    def on_not_finite(self) -> None:
        """Check first whether memory was the cause. Raises Disagreement if it was."""
        self.before_state_is_read()
        for name, now in steady_fingerprints(self.executor):
            if name.startswith("frozen") and now != self._good.get(name, now):
                raise Disagreement(
                    f"audit in step {self._step}: {name} has changed since the audit after step {self._last_good}, and "
                    f"nothing trains it: the culprit is worker {self.executor.transport.rank}, in its own copy"
                )

    def _fold(self) -> None:
        """Sum up the actions that this worker did with others since the last audit: with all, and with each."""
        rank = self.executor.transport.rank
        for action in self._done:
            match action:
                case actions.Send(shard, stage, peer) | actions.SendGradient(shard, stage, peer):
                    name = f"what went from worker {rank} to worker {peer}"
                case actions.Receive(shard, stage, peer) | actions.ReceiveGradient(shard, stage, peer):
                    name = f"what went from worker {peer} to worker {rank}"
                case _:
                    self._deeds[TOGETHER] = zlib.crc32(type(action).__name__.encode(), self._deeds.get(TOGETHER, 0))
                    continue
            is_gradient = isinstance(action, actions.SendGradient | actions.ReceiveGradient)
            text = f"{'gradient of ' * is_gradient}shard {shard} over the cut after stage {stage}"
            self._deeds[name] = zlib.crc32(text.encode(), self._deeds.get(name, 0))
        self._done.clear()
