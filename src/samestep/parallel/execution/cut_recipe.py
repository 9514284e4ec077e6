"""How to record and cut the forward, and the records so far: one for every form of batch and every way through it.

A way is told by the answers of the guards on it: the tensor values that forward asks for. All records have the same
segments with the same parameters; between two of these, each may do something else.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from samestep.errors import JobRefused
from samestep.job.objective import Objective
from samestep.numerics import random_streams
from samestep.parallel.cutting.cut import Cut, cut
from samestep.parallel.cutting.recorder import record
from samestep.parallel.cutting.recording import NAMES, Call
from samestep.parallel.cutting.signature import Signature, signature
from samestep.system.device import precision_of
from samestep.system.nests import PLAIN, walk

MOST_TRIES = 8  # of the first record
MOST_RECORDS = 256  # further ones take the place of the oldest
MOST_PLAIN = 32  # records that differ by plain values of the batch, or by the number that one guard answers

Answers = tuple[str, ...]  # of the first guards, as JSON
Key = tuple[Signature, Answers]


@dataclass
class CutRecipe:
    """How to record and cut the forward for any batch."""

    model: nn.Module
    objective: Objective
    starts: Sequence[str]
    sliced: Mapping[str, Sequence[int]]
    known: dict[Key, Cut]
    precision: str = "float32"

    def of(self, batch: Any, answers: Answers = ()) -> Cut:
        """The cut for a batch whose first guards answer so.

        Raises JobRefused for one that has other segments than the first batch's, and for too many.
        """
        key = signature(batch), answers
        if key not in self.known:
            found = self._known_way(key) or self._recorded(key, batch)
            self._keep(key, found)
            self._keep((key[0], found.answers), found)
        return self.known[key]

    def _known_way(self, key: Key) -> Cut | None:
        """A record of the same signature that begins with these answers."""
        name, answers = key
        ways = (cut for (other, of), cut in self.known.items() if other == name and of == cut.answers)
        return next((cut for cut in ways if cut.answers[: len(answers)] == answers), None)

    def _recorded(self, key: Key, batch: Any) -> Cut:
        name, answers = key
        first = next(iter(self.known.values()), None)
        self._check_number(name, answers)
        here = random_streams.leave()
        given, stages = [json.loads(answer) for answer in answers], {} if first is None else self._stages(first)
        cuts, run = list(self.sliced), self.objective.run
        with precision_of(self.precision, next(self.model.parameters()).device):
            for _ in range(MOST_TRIES):  # a stage's first layer may be dropped at random
                recording = record(self.model, run, batch, self.starts, cuts, given, stages, self.objective.settle)
                if len(recording.entered) == len(self.starts):
                    break
        random_streams.resume(here)
        found = cut(recording, self.model, 1 + len(self.starts), self.sliced)
        if first is not None and (differs := found.differs_from(first)):
            raise JobRefused(
                f"forward takes another way through the layers for a batch of {name} than for the first batch, "
                f"{differs}: a cut forward needs the same segments for all; use --plan data, or make forward the same"
            )
        for (other, _), known in self.known.items():
            if other.form == name.form and known.answers == found.answers and _same_calls(known, found):
                return known  # plain values that forward does not read
        return found

    def _stages(self, first: Cut) -> dict[str, int]:
        """The stage of every module that has all its parameters in one, after the first."""
        found: dict[str, int] = {}
        for name, module in self.model.named_modules():
            own = [f"{name}.{local}" for local, _ in module.named_parameters(remove_duplicate=False)]
            stages = {first.segments[first.homes[one]].stage for one in own if one in first.homes}
            if name and len(stages) == 1:
                found[name] = stages.pop()
        return found

    def _keep(self, key: Key, found: Cut) -> None:
        while len(self.known) >= MOST_RECORDS:
            del self.known[list(self.known)[1]]  # not the first, whose segments are the plan's
        self.known[key] = found

    def _check_number(self, name: Signature, answers: Answers) -> None:
        alike = [other for other, _ in self.known if other.form == name.form]
        cuts = {id(cut): other for (other, _), cut in self.known.items() if other.form == name.form}
        plain = {other.plain for other in cuts.values()} - {name.plain}
        if len(plain) >= MOST_PLAIN:
            differing = next((a, b) for a, b in zip(name.plain, alike[0].plain, strict=False) if a != b)
            raise JobRefused(
                f"forward does something else for every value of batch{differing[0][0]}, {differing[0][1]} now and "
                f"{differing[1][1]} before, and each value needs a record of its own ({MOST_PLAIN} so far): make it "
                "a tensor, or use --plan data"
            )
        at = len(answers) - 1
        asked = {cut.answers[at]: cut for (other, _), cut in self.known.items() if other == name
                 and at >= 0 and cut.answers[:at] == answers[:at] and len(cut.answers) > at}  # fmt: skip
        if len(asked) >= MOST_PLAIN:
            place = next(iter(asked.values())).guards[at].place
            raise JobRefused(
                f"forward asks for a tensor's value at {place} and finds another one every time, {answers[at]} now "
                f"({MOST_PLAIN} so far), and each needs a record of its own: compute with the tensor, without "
                ".item(), or use --plan data"
            )


def _same_calls(one: Cut, other: Cut) -> bool:
    """Whether two cuts perform the same calls with the same constants."""
    calls = [[call for segment in cut.segments for call in segment.calls] for cut in (one, other)]
    if len(calls[0]) != len(calls[1]) or not _same_leaves(one.result, other.result):
        return False
    return all(_same_call(a, b) for a, b in zip(*calls, strict=True))


def _same_call(a: Call, b: Call) -> bool:
    same_what = a.what == b.what if isinstance(a.what, str) else a.what is b.what
    return same_what and (a.makes, a.stage) == (b.makes, b.stage) and _same_leaves(a.arguments, b.arguments)


def _same_leaves(a: Any, b: Any) -> bool:
    ours, theirs = list(walk(a, NAMES)), list(walk(b, NAMES))
    if len(ours) != len(theirs):
        return False
    for (path, leaf), (other_path, other) in zip(ours, theirs, strict=True):
        equal = leaf is other or (isinstance(leaf, (*PLAIN, *NAMES)) and not isinstance(leaf, Tensor) and leaf == other)
        if path != other_path or not equal:
            return False
    return True
