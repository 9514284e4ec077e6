"""One worker's audits: every K steps, workers hold against each other what must be equal; in between, memory at rest
is watched.

    every K steps    fingerprints of all replicas, of settings, of what was done with others    (all workers meet)
    every step       memory at rest, or in as many steps as take `SHARE` of the time        (each for itself)

A difference between replicas may be gone after a few steps, and what it has done to the sums stays: a flipped bit in
a momentum decays, statistics are averaged. Hence the watch. Where two copies differ and no watch has seen why, one
worker does the steps again (replay.py).
"""

import json
import math
import statistics
import struct
import time
import warnings
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from samestep import snapshot
from samestep.consistency.audit import (
    Again,
    Difference,
    difference,
    differing,
    first_difference,
    named,
    nearest,
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
from samestep.replay import Base, Replay
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


LONGEST = 60.0  # seconds that doing steps again may take; others wait for it
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
        self._is_one_host = len(set(executor.transport.hosts)) == 1
        self._last_good, self._step = step, step
        self._done: list[actions.Action] = []
        self._deeds: dict[str, int] = {}  # checksums of what was done before, since the last audit
        self.pace = Pace(every)
        can_be_made_anew = job.data is not None and not isinstance(job.model, nn.Module)
        self.replay = Replay(job, executor.plan) if can_be_made_anew else None
        self._kept_for, self._stepped_at = 0.0, 0.0  # seconds; a time
        self._agree_at = step + FIRST
        self._good = dict(steady_fingerprints(executor))  # fingerprints of the last good audit
        self._has_begun = False
        executor.guard = self.before

    def before(self, action: actions.Action) -> None:
        """Call it before every action."""
        if not self._has_begun:
            self._has_begun = True
            self.watch.keep(self._step)
        kind = type(action)
        if kind is actions.Agree:
            self.check_rest()
        elif kind is actions.Publish and self._is_one_host:
            self._keep(self._step + 1)  # before others may go on
        if kind in TOLD_KINDS:  # what a worker does by itself is not held against others
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
        self._good = dict(steady_fingerprints(self.executor))

    def saved(self, step: int, folder: Path) -> None:
        """There is a checkpoint of what all had after so many steps."""
        if self.replay is not None:
            self.replay.saved.append(Base(step, folder))

    def took_other_rows(self) -> None:
        """A batch that is not the job's own: nobody can do these steps again."""
        self.replay = None

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
        """What may be the cause of other differences comes first: a wrong momentum makes wrong parameters."""
        yield SETTINGS, key_of(json.dumps(self._settings(), sort_keys=True))
        self._fold()
        yield from self._deeds.items()
        if not self._is_one_host:
            for part in (*state_parts(self.executor), *self.watch.parameter_parts()):
                yield from chunk_fingerprints(part)
        yield from steady_fingerprints(self.executor)

    def suspect(self) -> None:
        """A number is not finite: before others look for the reason, was it memory? Raises Disagreement."""
        self.check_rest()
        for name, now in steady_fingerprints(self.executor):
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
        opinions: dict[str, list[Any]] = {}
        for rank, text in enumerate(self.executor.transport.exchange(json.dumps(told).encode())):
            for name, value, opinion in json.loads(text):
                held.setdefault(name, {})[rank] = value
                opinions.setdefault(name, []).append(opinion)
        first, *others = (found(name, values, agreed(opinions[name])) for name, values in held.items())
        again = None
        if not first.culprits and first.name in held:
            again = self._again(first)
            first = first if again is None else nearest(first, again.distances)
        raise Disagreement(text_of(first, self._step, self._last_good, [one.name for one in others], again))

    def _again(self, first: Difference) -> Again | None:
        """One worker of each host does the steps again, and says how far its copy is from what it finds. All workers
        must call it; None where nobody can."""
        transport, own = self.executor.transport, None
        holders = sorted(worker for side in first.sides for worker in side)
        host = transport.hosts[transport.rank]
        if transport.rank == next((w for w in holders if transport.hosts[w] == host), None):
            own = self._done_again(first.name)
        heard = [json.loads(record) for record in transport.exchange(json.dumps(own).encode())]
        found = {rank: one for rank, one in enumerate(heard) if one is not None}
        if not found:
            return None
        return Again(next(iter(found.values()))[0], {rank: distance for rank, (_, distance) in found.items()})

    def _done_again(self, name: str) -> tuple[str, float] | None:
        """From where the steps were done again, and how far this worker's copy is from what it should be."""
        if self.replay is None:
            return None
        base = self.replay.base(self._last_good)
        seconds = statistics.median(self.pace.steps) if self.pace.steps else 0.0
        if seconds * (self._step - base.step) * self.executor.transport.size > LONGEST:
            return None
        with self.executor.transport.timesheet.whereabouts.during("audit", self._step):
            try:
                executor, parameters = self.replay.to(self._step, base)
            except Exception:  # noqa: BLE001 - a second opinion only: whatever the user's functions raise, there is none
                return None
            right = dict(copies(executor, Watch(executor, parameters))).get(name)
        own = dict(copies(self.executor, self.watch)).get(name)
        return None if right is None or own is None else (str(base), distance(own, right))

    def _right(self, name: str) -> Any:
        """What this worker knows to be right, whatever it holds; None where it does not know."""
        if name == SETTINGS:
            return self._settings_anew()
        return self._good.get(name) if name.startswith("frozen") else None

    def _settings_anew(self) -> Any:
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


TOLD_KINDS = frozenset(
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


def copies(executor: Executor, watch: Watch) -> Iterator[tuple[str, Tensor]]:
    """What hosts or workers have copies of, by the names that audits give it."""
    for part in (*watch.parameter_parts(), *state_parts(executor)):
        yield from chunks(part)
    yield from steady(executor)


def steady(executor: Executor) -> Iterator[tuple[str, Tensor]]:
    """What every worker has a copy of."""
    for part in buffer_parts(executor):
        yield part.name, part.flat
    for name, constant in snapshot.constants(executor):
        yield f"frozen parameter {name}", constant.detach()


def steady_fingerprints(executor: Executor) -> Iterator[tuple[str, int]]:
    return ((name, fingerprint(tensor)) for name, tensor in steady(executor))


def distance(own: Tensor, right: Tensor) -> float:
    """The sum of what elements are off; infinite where they are not numbers."""
    found = float((own.double() - right.double()).abs().sum())
    return found if math.isfinite(found) else math.inf


def agreed(opinions: Sequence[Any]) -> Any:
    """What those say who have an opinion, if they say the same."""
    texts = {json.dumps(opinion, sort_keys=True) for opinion in opinions if opinion is not None}
    return json.loads(texts.pop()) if len(texts) == 1 else None


def found(name: str, values: dict[int, Any], right: Any) -> Difference:
    """The difference in a name. Structured values say where."""
    texts = {rank: json.dumps(value, sort_keys=True) for rank, value in values.items()}
    correct = None if right is None else json.dumps(right, sort_keys=True)
    result = difference(name, texts, correct if correct in texts.values() else None)
    if name != SETTINGS:
        return result
    one, other = (values[side[0]] for side in result.sides[:2])
    return Difference(first_difference(one, other) or name, result.sides, result.culprits)


def chunks(tensor: Named) -> Iterator[tuple[str, Tensor]]:
    """The tensor in pieces of 32,768 elements of its own index, the same whoever holds which of them."""
    for number, piece in enumerate(torch.split(tensor.flat, CHUNK)):
        first = tensor.start + number * CHUNK
        yield f"{tensor.name} (between elements {first} and {first + len(piece) - 1})", piece


def chunk_fingerprints(tensor: Named) -> Iterator[tuple[str, int]]:
    """Of each of its pieces."""
    per = CHUNK * tensor.flat.element_size() // (WIDE * WORD)
    for (name, _), found_there in zip(chunks(tensor), torch.split(blocks(tensor.flat), per), strict=True):
        yield name, joined(found_there)
