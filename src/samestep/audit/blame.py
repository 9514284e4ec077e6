"""Who is to blame for a difference between copies: workers exchange what they hold and what they know to be right.

    settings             from the job's own optimizer and schedule, stepped again from the start
    what nothing trains  as it was at the last good audit
    anything             the majority
    else                 a worker of each side does the steps again (replay.py), and the further copy is wrong

All workers receive the same records and come to the same sentence.
"""

import json
import warnings
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from samestep.audit.differences import Again, ReplicaDifference, difference, first_difference, nearest, text_of
from samestep.audit.fingerprint import key_of
from samestep.audit.memory_watch import MemoryWatch
from samestep.audit.replay import Replay
from samestep.audit.replicas import copies, distance
from samestep.errors import Disagreement
from samestep.job.job import Job
from samestep.parallel.execution.executor import Executor
from samestep.state import snapshot
from samestep.system.json_values import plain

SETTINGS = "the state of optimizer settings, schedule, seed and step"
LONGEST = 60.0  # seconds that doing steps again may take; others wait for it


@dataclass(frozen=True)
class Blame:
    """One worker's part in finding the culprit. All workers must begin theirs together.

    good: fingerprints of the last good audit, which was after step `last_good`. replay: None where nobody can do the
    steps again. step_seconds: what a step of all workers takes.
    """

    executor: Executor
    job: Job
    watch: MemoryWatch
    step: int  # optimizer steps done
    good: Mapping[str, int]
    last_good: int
    replay: Replay | None
    step_seconds: float

    def outcome(self, own: Mapping[str, int], bad: Collection[int]) -> Disagreement:
        """own: this worker's record. bad: the keys on which workers differ."""
        records: list[tuple[str, Any, Any]] = []  # name, value, and what this worker thinks is right
        for name in (name for name in own if key_of(name) in bad):
            value: Any = self._settings() if name == SETTINGS else own[name]
            records.append((name, value, self._right(name)))
        held: dict[str, dict[int, Any]] = {}
        opinions: dict[str, list[Any]] = {}
        for rank, text in enumerate(self.executor.transport.exchange(json.dumps(records).encode())):
            for name, value, opinion in json.loads(text):
                held.setdefault(name, {})[rank] = value
                opinions.setdefault(name, []).append(opinion)
        first, *others = (found(name, values, agreed(opinions[name])) for name, values in held.items())
        again = None
        if not first.culprits and first.name in held:
            again = self._again(first)
            first = first if again is None else nearest(first, again.distances)
        return Disagreement(text_of(first, self.step, self.last_good, [one.name for one in others], again))

    def _again(self, first: ReplicaDifference) -> Again | None:
        """A worker of each side does the steps again, and says how far its copy is from what it finds. None where not
        all of them can."""
        transport, judges = self.executor.transport, [side[0] for side in first.sides]
        own = self._done_again(first.name) if transport.rank in judges else None
        answers = [json.loads(record) for record in transport.exchange(json.dumps(own).encode())]
        found_by = {judge: answers[judge] for judge in judges}
        if None in found_by.values():
            return None
        return Again(found_by[judges[0]][0], {judge: off for judge, (_, off) in found_by.items()})

    def _done_again(self, name: str) -> tuple[str, float] | None:
        """The state from which the steps were done again, and the distance of this worker's copy from the result."""
        if self.replay is None:
            return None
        base, transport = self.replay.base(self.last_good), self.executor.transport
        if self.step_seconds * (self.step - base.step) * transport.size > LONGEST:
            return None
        with transport.timesheet.whereabouts.during("audit", self.step):
            try:
                executor, parameters = self.replay.to(self.step, base)
            except Exception:  # noqa: BLE001 - a second opinion only: whatever the user's functions raise, there is none
                return None
            right = dict(copies(executor, MemoryWatch(executor, parameters))).get(name)
        own = dict(copies(self.executor, self.watch)).get(name)
        return None if right is None or own is None else (str(base), distance(own, right))

    def _settings(self) -> dict[str, Any]:
        return snapshot.values(self.executor, self.step)

    def _right(self, name: str) -> Any:
        """The value that this worker knows to be right, whatever it holds; None where it does not know."""
        if name == SETTINGS:
            return self._settings_recomputed()
        return self.good.get(name) if name.startswith("frozen") else None

    def _settings_recomputed(self) -> Any:
        """The settings, from the job's own optimizer and schedule stepped again; None where that cannot be done."""
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
                for _ in range(0 if scheduler is None else self.step):
                    scheduler.step()  # type: ignore[union-attr]
            groups = [
                {"names": names, **plain({k: v for k, v in group.items() if k != "params"}, "the parameter group")}
                for names, group in zip(self.executor.update.group_names, optimizer.param_groups, strict=True)
            ]
            state = None if scheduler is None else plain(scheduler.state_dict(), "the scheduler's state")
        except Exception:  # noqa: BLE001 - a second opinion only: whatever the user's functions raise, there is none
            return None
        return {**self._settings(), "optimizer": groups, "scheduler": state}


def agreed(opinions: Sequence[Any]) -> Any:
    """The common value of all opinions that are not None; None if they differ."""
    texts = {json.dumps(opinion, sort_keys=True) for opinion in opinions if opinion is not None}
    return json.loads(texts.pop()) if len(texts) == 1 else None


def found(name: str, values: dict[int, Any], right: Any) -> ReplicaDifference:
    """The difference in a name; in structured values, with its path."""
    texts = {rank: json.dumps(value, sort_keys=True) for rank, value in values.items()}
    correct = None if right is None else json.dumps(right, sort_keys=True)
    result = difference(name, texts, correct if correct in texts.values() else None)
    if name != SETTINGS:
        return result
    one, other = (values[side[0]] for side in result.sides[:2])
    return ReplicaDifference(first_difference(one, other) or name, result.sides, result.culprits)
