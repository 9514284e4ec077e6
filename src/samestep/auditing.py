"""One worker's audits: every K steps, workers hold against each other what must be equal; in between, memory at rest
is watched.

    every K steps    fingerprints of all replicas, of settings, of what was done with others    (all workers meet)
    every step       memory at rest, or as many steps as fit SHARE of the time (pace.py)        (each for itself)

A difference between replicas may be gone after a few steps, and what it has done to the sums stays: a flipped bit in
a momentum decays, statistics are averaged. Hence the watch.
"""

import json
import struct
import time
import warnings
import zlib
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from samestep import snapshot
from samestep.consistency.audit import (
    Difference,
    difference,
    differing,
    first_difference,
    named,
    packed,
    text_of,
)
from samestep.consistency.fingerprint import WIDE, WORD, blocks, fingerprint, joined, key_of
from samestep.consistency.pace import Pace
from samestep.consistency.policy import EXACT
from samestep.errors import Disagreement
from samestep.job import Job
from samestep.parallel.executor import Executor
from samestep.parallel.layout import CHUNK
from samestep.parallelize import Prepared
from samestep.plain import plain
from samestep.schedule import actions
from samestep.watch import Change, Named, Watch, buffer_parts, state_parts

SETTINGS, TOGETHER = "the state of optimizer settings, schedule, seed and step", "the actions done together"


def audit_of(
    executor: Executor, job: Job, prepared: Prepared, parameters: Tensor, every: int, step: int
) -> "Audit | None":
    """None where there is nothing to audit, or where that is not supported.

    One worker has nobody to compare with, and its memory is its user's. Between the syncs of a policy, workers
    differ. Under a memory limit a worker must not look at others' memory; on GPUs, looking costs waiting.
    """
    is_exact = executor.plan.numerics.sync == EXACT and executor.plan.workers > 1
    if not every or not is_exact or prepared.initial is not None or parameters.device.type != "cpu":
        return None
    return Audit(executor, job, parameters, every, step)


FIRST = 8  # steps, after which workers know what the watch costs
WISH = struct.Struct("<d")  # the share of steps that a worker can afford to watch
MOST = 4096  # actions that are kept as such


class Audit:
    """every: steps from one audit to the next."""

    def __init__(self, executor: Executor, job: Job, parameters: Tensor, every: int, step: int) -> None:
        """parameters: the memory of this host's copy. step: optimizer steps done."""
        self.executor, self.job, self.every = executor, job, every
        self.count = 0  # audits held
        self.watched = 0  # steps in which memory at rest was watched
        self.watch = Watch(executor, parameters)
        self._last_good, self._step = step, step
        self._done: list[actions.Action] = []
        self._deeds: dict[str, int] = {}  # checksums of what was done before, since the last audit
        self.pace = Pace(every)
        self._kept_for, self._stepped_at = 0.0, 0.0  # seconds; a time
        self._agree_at = step + FIRST
        self._good = dict(self._steady())  # fingerprints of the last good audit
        self._has_begun = False
        executor.guard = self.before

    def before(self, action: actions.Action) -> None:
        """Call it before every action."""
        if not self._has_begun:
            self._has_begun = True
            self.watch.keep(self._step)
        if isinstance(action, actions.Agree):
            self.check_rest()
        self._done.append(action)
        if len(self._done) > MOST:
            self._fold()

    def after(self, step: int) -> None:
        """Call it when so many optimizer steps are done. Raises Disagreement."""
        self._step = step
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
        if is_due or self.pace.watches_after(step):
            began = time.thread_time()
            self.watch.keep(step)
            self._kept_for = time.thread_time() - began

    def _set_pace(self, records: Sequence[bytes]) -> None:
        self.pace.agree([WISH.unpack_from(record)[0] for record in records])

    def check_rest(self) -> None:
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
        """Who can have written there: a host's workers share one copy of the parameters."""
        rank, hosts = self.executor.transport.rank, self.executor.transport.hosts
        near = [r for r, host in enumerate(hosts) if host == hosts[rank]]
        if found.name.startswith("parameter ") and len(near) > 1:
            return f"in the memory of host {hosts[rank]}, which {named(near)} share"
        return f"worker {rank}, in its own copy"

    def forget(self, step: int) -> None:
        """All state was put in place anew."""
        self.watch.forget_all()
        self._has_begun = False
        self._done.clear()
        self._deeds.clear()
        self._last_good = self._step = step
        self._good = dict(self._steady())

    def compare(self) -> None:
        """All workers must call it. Raises Disagreement, in all of them, when two hold different values."""
        transport, own = self.executor.transport, dict(self._record())
        records = transport.exchange(WISH.pack(self.pace.wish()) + packed(own))
        self._set_pace(records)
        bad = differing([record[WISH.size :] for record in records])
        if bad:
            self._explain(own, bad)
        self._good = own
        self._done.clear()
        self._deeds.clear()
        self._last_good = self._step
        self.count += 1

    def _record(self) -> Iterator[tuple[str, int]]:
        """What may be the cause of other differences comes first."""
        yield SETTINGS, key_of(json.dumps(self._settings(), sort_keys=True))
        self._fold()
        yield from self._deeds.items()
        if len(set(self.executor.transport.hosts)) > 1:
            for part in (*self.watch.parameter_parts(), *state_parts(self.executor)):
                yield from chunk_fingerprints(part)
        yield from self._steady()

    def _steady(self) -> Iterator[tuple[str, int]]:
        """What every worker has a copy of, and what may never change."""
        for part in buffer_parts(self.executor):
            yield part.name, fingerprint(part.flat)
        for name, constant in snapshot.constants(self.executor):
            yield f"frozen parameter {name}", fingerprint(constant)

    def suspect(self) -> None:
        """A number is not finite: before others look for the reason, was it memory? Raises Disagreement."""
        self.check_rest()
        for name, now in self._steady():
            if name.startswith("frozen") and now != self._good.get(name, now):
                raise Disagreement(
                    f"audit in step {self._step}: {name} has changed since the audit after step {self._last_good}, and "
                    f"nothing trains it: the culprit is worker {self.executor.transport.rank}, in its own copy"
                )

    def _settings(self) -> dict[str, Any]:
        return snapshot.values(self.executor, self._step)

    def _fold(self) -> None:
        """What this worker did with others since the last audit: with all, and with each."""
        rank = self.executor.transport.rank
        for action in self._done:
            match action:
                case actions.Send(shard, stage, peer) | actions.SendGradient(shard, stage, peer):
                    name = f"what went from worker {rank} to worker {peer}"
                case actions.Receive(shard, stage, peer) | actions.ReceiveGradient(shard, stage, peer):
                    name = f"what went from worker {peer} to worker {rank}"
                case _:
                    if isinstance(action, TOGETHER_KINDS):
                        self._deeds[TOGETHER] = zlib.crc32(type(action).__name__.encode(), self._deeds.get(TOGETHER, 0))
                    continue
            is_gradient = isinstance(action, actions.SendGradient | actions.ReceiveGradient)
            text = f"{'gradient of ' * is_gradient}shard {shard} over the cut after stage {stage}"
            self._deeds[name] = zlib.crc32(text.encode(), self._deeds.get(name, 0))
        self._done.clear()

    def _explain(self, own: dict[str, int], bad: set[int]) -> None:
        """Everybody tells what it holds of the names that differ, and all come to the same sentence."""
        told: list[tuple[str, Any, Any]] = []  # name, value, and what this worker thinks is right
        for name in (name for name in own if key_of(name) in bad):
            value: Any = self._settings() if name == SETTINGS else own[name]
            told.append((name, value, self._right(name)))
        held: dict[str, dict[int, Any]] = {}
        right: dict[str, Any] = {}
        for rank, text in enumerate(self.executor.transport.exchange(json.dumps(told).encode())):
            for name, value, opinion in json.loads(text):
                held.setdefault(name, {})[rank] = value
                right[name] = right.get(name) or opinion
        first, *others = (found(name, values, right[name]) for name, values in held.items())
        raise Disagreement(text_of(first, self._step, self._last_good, len(others)))

    def _right(self, name: str) -> Any:
        """What this worker knows to be right, whatever it holds; None where it does not know."""
        if name == SETTINGS:
            return self._replayed()
        return self._good.get(name) if name.startswith("frozen") else None

    def _replayed(self) -> Any:
        """The settings, from the job's own optimizer and schedule stepped anew; None where that cannot be."""
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                optimizer = self.job.optimizer(
                    [
                        nn.Parameter(torch.empty(p.shape, dtype=p.dtype, device="meta"))
                        for p in self.executor.model.parameters()
                        if p.requires_grad
                    ]
                )
                scheduler = None if self.job.scheduler is None else self.job.scheduler(optimizer)
                for _ in range(0 if scheduler is None else self._step):
                    scheduler.step()  # type: ignore[union-attr]
            groups = [
                {"names": names, **plain({k: v for k, v in group.items() if k != "params"}, "the parameter group")}
                for names, group in zip(self.executor.update.group_names, optimizer.param_groups, strict=True)
            ]
            state = None if scheduler is None else plain(scheduler.state_dict(), "the scheduler's state")
        except Exception:  # noqa: BLE001 - a second opinion only: whatever the user's functions raise, there is none
            return None
        return {**self._settings(), "optimizer": groups, "scheduler": state}


TOGETHER_KINDS = (
    actions.Agree,
    actions.Reduce,
    actions.MergeBuffers,
    actions.Clip,
    actions.Update,
    actions.Publish,
)


def found(name: str, values: dict[int, Any], right: Any) -> Difference:
    """The difference in a name. Structured values say where."""
    texts = {rank: json.dumps(value, sort_keys=True) for rank, value in values.items()}
    correct = None if right is None else json.dumps(right, sort_keys=True)
    result = difference(name, texts, correct if correct in texts.values() else None)
    if name != SETTINGS:
        return result
    one, other = (values[side[0]] for side in result.sides[:2])
    return Difference(first_difference(one, other) or name, result.sides, result.culprits)


def chunk_fingerprints(tensor: Named) -> Iterator[tuple[str, int]]:
    """One for every 32,768 elements of the tensor's own index, whoever holds which of them."""
    per = CHUNK * tensor.flat.element_size() // (WIDE * WORD)
    parts = blocks(tensor.flat)
    for number, found_there in enumerate(torch.split(parts, per)):
        first = tensor.start + number * CHUNK
        last = min(first + CHUNK, tensor.start + tensor.flat.numel()) - 1
        yield f"{tensor.name} (between elements {first} and {last})", joined(found_there)
