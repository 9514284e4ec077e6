"""What the records of a script's runs say: the first difference, and the pattern it follows.

    l_rm    gradient of worker r's own rows in micro-batch m
    c_r     gradient that worker r's optimizer gets
    g, g'   gradient on one process, and with parameters moved by one unit in the last place

A tensor differs where |c - g| / |g| > 10 max(d, median of d, 4 eps), with d = |g' - g| / |g| measured per tensor.
"""

import statistics
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from samestep.proof.causes import Cause, Finding
from samestep.proof.record import KINDS, Key, Noted, Record, relative_distance

MULTIPLE = 10.0
EPS = torch.finfo(torch.float32).eps
WITHOUT_SITE = ("broadcast", "scatter", "gather", "broadcast_object_list")  # a root may call them on a line of its own
BETWEEN_TWO = ("send", "recv", "isend", "irecv")

Call = tuple[int, str, str, tuple[int, ...], str]  # step, what, of which tensor, shape, file:line
Step = Mapping[Key, Sequence[Noted]]
Vectors = dict[str, Tensor]


@dataclass(frozen=True)
class Seen:
    """One worker, from outside."""

    rank: int
    status: int
    killed: bool
    collectives: tuple[Call, ...]
    inside: bool  # of the last one
    said: tuple[str, ...]
    stack: str

    @property
    def failed(self) -> bool:
        return self.status != 0


@dataclass(frozen=True)
class Runs:
    workers: Record
    reference: Record
    again: Record
    perturbed: Record
    facts: tuple[Mapping[str, Any], ...]
    seen: tuple[Seen, ...]


def judge(runs: Runs) -> tuple[list[Finding], int]:
    """The findings of the first step that has any, and how many tensors were compared."""
    compared = 0
    for step in runs.reference.steps():
        reference, again = runs.reference.of(step), runs.again.of(step)
        found = not_deterministic(step, reference, again)
        if found is not None:
            return [found], compared
    findings: list[Finding] = []
    earlier: list[tuple[int, Step]] = []
    for step in runs.reference.steps():
        view = View(step, runs.workers.of(step), runs.reference.of(step), runs.perturbed.of(step), runs.facts)
        if not view.workers:
            break
        compared += sum(len(each) for each in view.workers.values())
        findings = judge_step(view, earlier, runs.seen)
        if findings:
            break
        earlier.append((step, view.workers))
    whole_run = judge_passes(runs.facts)
    if whole_run is not None and not any(f.cause is Cause.DATA_ORDER for f in findings):
        findings.append(whole_run)
    return findings, compared


def not_deterministic(step: int, one: Step, other: Step) -> Finding | None:
    for key in sorted(one, key=causal_order):
        digests = [[noted.digest for noted in run.get(key, [])] for run in (one, other)]
        if digests[0] != digests[1]:
            why = "two runs of the script on one process differ here already; seed it, or use deterministic kernels"
            return Finding(Cause.NOT_DETERMINISTIC, step, key.kind, key.name, why)
    return None


def causal_order(key: Key) -> int:
    return KINDS.index(key.kind)


@dataclass(frozen=True)
class View:
    """One step of all runs."""

    step: int
    workers: Step
    reference: Step
    perturbed: Step
    facts: tuple[Mapping[str, Any], ...]

    def names(self, kind: str) -> list[str]:
        found = [key.name for run in (self.reference, self.workers) for key in run if key.kind == kind]
        return list(dict.fromkeys(found))

    def ranks(self) -> list[int]:
        return sorted({noted.rank for each in self.workers.values() for noted in each})

    def per_rank(self, kind: str) -> dict[int, Vectors]:
        """Summed over micro-batches and over calls."""
        found: dict[int, Vectors] = {rank: {} for rank in self.ranks()}
        for key, each in self.workers.items():
            if key.kind == kind:
                for noted in each:
                    mine = found[noted.rank]
                    mine[key.name] = mine[key.name] + noted.values if key.name in mine else noted.values
        return found

    def alone(self, kind: str) -> Vectors:
        return vectors(self.reference, kind)

    def bounds(self, kind: str) -> dict[str, float]:
        """Per tensor: how far apart rounding may bring it, from the perturbed run."""
        wanted, moved = self.alone(kind), vectors(self.perturbed, kind)
        apart = {n: relative_distance([moved[n]], [wanted[n]]) for n in wanted if n in moved and same(moved, wanted, n)}
        finite = [value for value in apart.values() if value != float("inf")]
        middle = statistics.median(finite) if finite else 0.0
        return {name: MULTIPLE * max(apart.get(name, 0.0), middle, 4 * EPS) for name in wanted}


def same(one: Vectors, other: Vectors, name: str) -> bool:
    return one[name].shape == other[name].shape


def vectors(run: Step, kind: str) -> Vectors:
    found: Vectors = {}
    for key, each in run.items():
        if key.kind == kind and each:
            value = each[0].values
            found[key.name] = found[key.name] + value if key.name in found else value
    return found


def judge_step(view: View, earlier: Sequence[tuple[int, Step]], seen: Sequence[Seen]) -> list[Finding]:
    """In causal order; the first check that finds something ends it."""
    for found in (
        judge_rows(view, earlier),
        judge_stream(view),
        judge_collectives(view, seen),
        judge_membership(view),
        judge_accumulation(view),
        judge_gradients(view),
        judge_clip(view),
        judge_settings(view, earlier),
        judge_unchanged(view),
        judge_state(view),
    ):
        if found is not None:
            return [found]
    return []


# data


def rows_by_rank(step: Step) -> dict[int, list[str]]:
    found: dict[int, list[str]] = {}
    for key, each in step.items():
        if key.kind == "rows":
            for noted in each:
                found.setdefault(noted.rank, []).extend(noted.text.split())
    return found


def judge_rows(view: View, earlier: Sequence[tuple[int, Step]]) -> Finding | None:
    mine = rows_by_rank(view.workers)
    union = Counter(row for rows in mine.values() for row in rows)
    wanted = Counter(row for rows in rows_by_rank(view.reference).values() for row in rows)
    if not union or not wanted:
        return None
    for step, past in earlier:
        old = {row for rows in rows_by_rank(past).values() for row in rows}
        again = sum(row in old for row in union)
        used = sum(len(rows) for _, s in earlier for rows in rows_by_rank(s).values())
        total = max((fact.get("rows", 0) for fact in view.facts), default=0)
        if 2 * again > len(union) and used + sum(union.values()) <= total:
            why = f"{again} of {len(union)} rows were used at step {step} already, before all {total} rows had a turn"
            return Finding(Cause.DATA_ORDER, view.step, "rows", "batch", why)
    if union == wanted:
        return None
    twice = [row for row, count in union.items() if count > wanted[row] > 0 or (count > 1 and wanted[row] == 0)]
    if twice:
        who = [rank for rank, rows in mine.items() if twice[0] in rows]
        why = f"{len(twice)} of {len(union)} rows are used more than once, the first by workers {listed(who)}"
        return Finding(Cause.DATA_ORDER, view.step, "rows", "batch", why, worker=who[-1])
    if sum(union.values()) != sum(wanted.values()):
        why = (
            f"workers use {sum(union.values())} rows, one process {sum(wanted.values())}; if the batch size is a "
            "worker's, give one process the whole with --reference-arguments"
        )
        return Finding(Cause.DATA_ORDER, view.step, "rows", "batch", why)
    strangers = sum((union - wanted).values())
    worker = next(rank for rank, rows in mine.items() if Counter(rows) - wanted)
    why = f"{strangers} of the workers' {sum(union.values())} rows are not among those of one process"
    return Finding(Cause.DATA_ORDER, view.step, "rows", "batch", why, worker=worker)


def judge_passes(facts: Sequence[Mapping[str, Any]]) -> Finding | None:
    for fact in facts[:1]:
        passes = [one for one in fact.get("passes", []) if one[2]]
        for one, other in pairwise(passes):
            if one[1] == other[1] and one[0] < other[0]:
                why = f"two passes, from step {one[0]} and from step {other[0]}, have one order; call set_epoch"
                return Finding(Cause.DATA_ORDER, other[0], "rows", "sampler", why)
    return None


def judge_stream(view: View) -> Finding | None:
    streams = [fact.get("stream") for fact in view.facts]
    if view.step == 0 and len(streams) > 1 and streams[0] is not None and len(set(streams)) == 1:
        why = "all workers draw dropout from generators in one state: different rows get one mask; seed by rank"
        return Finding(Cause.RANDOM_STREAM, view.step, "random stream", "dropout", why)
    return None


# order


def judge_collectives(view: View, seen: Sequence[Seen]) -> Finding | None:
    calls = {one.rank: [call for call in one.collectives if call[0] == view.step] for one in seen}
    return order_differs(calls)


def order_differs(calls: Mapping[int, Sequence[Call]]) -> Finding | None:
    calls = {rank: [call for call in each if call[1] not in BETWEEN_TWO] for rank, each in calls.items()}
    first, *others = sorted(calls)
    for other in others:
        for number, (one, two) in enumerate(zip(calls[first], calls[other], strict=False)):
            if meeting(one) != meeting(two):
                why = f"collective {number + 1}: worker {first} enters {said(one)}, worker {other} enters {said(two)}"
                return Finding(Cause.COLLECTIVE_ORDER, one[0], "collective", one[2] or one[1], why, worker=other)
        if len(calls[first]) != len(calls[other]):
            rank = first if len(calls[first]) > len(calls[other]) else other
            one = calls[rank][min(len(calls[first]), len(calls[other]))]
            why = f"only worker {rank} enters {said(one)}"
            return Finding(Cause.COLLECTIVE_ORDER, one[0], "collective", one[2] or one[1], why, worker=rank)
    return None


def meeting(call: Call) -> tuple[Any, ...]:
    site = "" if call[2] or call[1] in WITHOUT_SITE else call[4]
    return call[0], call[1], call[2], call[3], site


def said(call: Call) -> str:
    return f"{call[1]} {call[2]}".rstrip() + f" {list(call[3])} at {call[4]}"


def judge_stopped(seen: Sequence[Seen], timeout: float) -> Finding:
    """Workers that failed, or did not end."""
    found = order_differs({one.rank: one.collectives for one in seen})
    if found is not None:
        return found
    crashed = next((one for one in seen if one.failed and not one.killed), None)
    step = max((call[0] for one in seen for call in one.collectives), default=0)
    if crashed is not None:
        why = f"worker {crashed.rank} ended with {crashed.status}: " + " / ".join(crashed.said[-2:])
        return Finding(Cause.UNKNOWN, step, "collective", "", why, worker=crashed.rank)
    where = "; ".join(f"worker {one.rank} {'ended' if not one.failed else 'is in ' + standing(one)}" for one in seen)
    stuck = next((one.rank for one in seen if one.failed and not one.inside), None)
    return Finding(Cause.HANG, step, "collective", "", f"after {timeout:g} s {where}", worker=stuck)


def standing(one: Seen) -> str:
    if one.inside and one.collectives:
        return said(one.collectives[-1])
    lines = [line.strip() for line in one.stack.splitlines() if line.strip().startswith("File")]
    own = [line for line in lines if "/torch/" not in line and "samestep/proof" not in line and "<frozen" not in line]
    return (own or lines or ["a place that left no stack"])[0]


# gradients


def judge_membership(view: View) -> Finding | None:
    """Parameters that the optimizer does not hold, while it holds others that no module has."""
    apart = [noted for key, each in view.workers.items() if key.name == "not in the optimizer" for noted in each]
    strange = [noted for key, each in view.workers.items() if key.name == "not in the model" for noted in each]
    for one, other in zip(apart, strange, strict=False):
        if one.text and other.text != "0":
            names = one.text.split("\n")
            why = f"the optimizer holds {other.text} parameters that the model has not, and not {len(names)} of its own"
            return Finding(Cause.STALE_WEIGHTS, view.step, "parameter", names[0], why, worker=one.rank)
    return None


def judge_accumulation(view: View) -> Finding | None:
    """On one process, the optimizer must get the gradients of all micro-batches."""
    last = max((key.shard for key in view.reference if key.kind == "local gradient"), default=0)
    if last == 0:
        return None
    gradients = view.alone("gradient")
    totals = vectors(view.reference, "local gradient")
    for name in (name for name in gradients if name in totals):
        total = totals[name]
        final = view.reference.get(Key("local gradient", name, last))
        if final is None or final[0].values.shape != gradients[name].shape:
            continue
        is_last = relative_distance([gradients[name]], [final[0].values]) < 4 * EPS
        if is_last and relative_distance([gradients[name]], [total]) > 1e-3:
            why = f"the optimizer gets the gradient of the last of {last + 1} micro-batches; the others are dropped"
            return Finding(Cause.MISSING_REDUCTION, view.step, "gradient", name, why, shard=last)
    return None


def judge_gradients(view: View) -> Finding | None:
    wanted, bounds, by_rank = view.alone("gradient"), view.bounds("gradient"), view.per_rank("gradient")
    local = view.per_rank("local gradient")
    ranks = view.ranks()
    names = [name for name in wanted if all(name in by_rank[r] and same(by_rank[r], wanted, name) for r in ranks)]
    names = [name for name in names if float(wanted[name].norm()) > floor(wanted)]
    bad = {
        name: max(ranks, key=lambda r: relative_distance([by_rank[r][name]], [wanted[name]]))
        for name in names
        if any(relative_distance([by_rank[r][name]], [wanted[name]]) > bounds[name] for r in ranks)
    }
    if not bad:
        return None
    name, worker = next(iter(bad.items()))
    apart = relative_distance([by_rank[worker][name]], [wanted[name]])

    def finding(cause: Cause, why: str, at: int | None = worker) -> Finding:
        return Finding(cause, view.step, "gradient", name, f"{why}; {apart:.2g} apart", worker=at, distance=apart)

    some = f"{len(bad)} of {len(names)} parameters"
    differ = [n for n in bad if any(relative_distance([by_rank[r][n]], [by_rank[ranks[0]][n]]) > bounds[n]
                                    for r in ranks[1:])]  # fmt: skip
    if differ:
        factors = [factor([by_rank[r][n] for n in names], [wanted[n] for n in names], bounds, names) for r in ranks]
        if all(one is not None for one in factors):
            said = ", ".join(f"worker {r}: {one:.4g}" for r, one in zip(ranks, factors, strict=True))
            return finding(Cause.CLIPPING, f"each worker has the right gradient times a factor of its own ({said})")
        own = [n for n in differ if all(n in local[r] and factor([by_rank[r][n]], [local[r][n]], bounds, [n])
                                        is not None for r in ranks)]  # fmt: skip
        if own:
            return finding(Cause.MISSING_REDUCTION, f"every worker keeps the gradient of its own rows, in {some}")
        return finding(Cause.MISSING_REDUCTION, f"workers' gradients differ from one another, in {some}")
    mine = by_rank[ranks[0]]
    k = factor([mine[n] for n in bad], [wanted[n] for n in bad], bounds, list(bad))
    if k is not None:
        what = f"{k:.6g} times one process's gradient{meaning(k, len(ranks), micro_batches(view))}, in {some}"
        if len(bad) == len(names):
            return finding(Cause.LOSS_WEIGHTING, what, None)
        return finding(Cause.DOUBLE_COUNTING if k > 1 else Cause.MISSING_REDUCTION, what, None)
    layers: list[str] = next((fact["batchnorm"] for fact in view.facts if fact.get("batchnorm")), [])
    if layers:
        why = f"gradients differ in {some}, and each worker normalises by its own rows in {listed(layers)}"
        return Finding(Cause.BATCHNORM, view.step, "buffer", layers[0], why, distance=apart)
    weights = shares(view, names, mine, wanted)
    if weights is not None:
        got, right = weights
        return finding(
            Cause.LOSS_WEIGHTING, f"parts are weighted {numbers(got)}, on one process {numbers(right)}", None
        )
    return finding(Cause.UNKNOWN, f"workers agree with one another, in {some} not with one process", None)


def floor(tensors: Vectors) -> float:
    """Below it, a gradient is what rounding left of zero."""
    return 1e-6 * max((float(each.norm()) for each in tensors.values()), default=0.0)


def factor(
    found: Sequence[Tensor], wanted: Sequence[Tensor], bounds: Mapping[str, float], names: Sequence[str]
) -> float | None:
    """k, where found = k wanted within the bounds."""
    if any(a.shape != b.shape for a, b in zip(found, wanted, strict=True)):
        return None
    f, w = torch.cat(list(found)), torch.cat(list(wanted))
    k = float(f @ w / (w @ w)) if float(w @ w) > 0 else 0.0
    if abs(k) < 1e-9:
        return None
    for a, b, name in zip(found, wanted, names, strict=True):
        if relative_distance([a / k], [b]) > 3 * bounds.get(name, 0.0):
            return None
    return k


def micro_batches(view: View) -> int:
    return 1 + max((key.shard for key in view.workers if key.kind == "rows"), default=0)


def meaning(k: float, workers: int, micro: int) -> str:
    known = {
        "the number of workers": workers,
        "one by the number of workers": 1 / workers,
        "the number of micro-batches": micro,
        "one by the number of micro-batches": 1 / micro,
        "workers times micro-batches": workers * micro,
        "one by workers times micro-batches": 1 / (workers * micro),
    }
    said = [what for what, value in known.items() if value != 1 and abs(k / value - 1) < 1e-4]
    return f" ({said[0]})" if said else ""


def shares(view: View, names: Sequence[str], mine: Vectors, wanted: Vectors) -> tuple[list[float], list[float]] | None:
    """Weights w and v of the parts l_rm with which c = sum w l and g = sum v l, where both fit."""
    parts: dict[tuple[int, int], Vectors] = {}
    for key, each in view.workers.items():
        if key.kind == "local gradient":
            for noted in each:
                parts.setdefault((noted.rank, key.shard), {})[key.name] = noted.values
    columns = [p for _, p in sorted(parts.items()) if all(n in p and same(p, wanted, n) for n in names)]
    if len(columns) < 2:
        return None
    matrix = torch.stack([torch.cat([p[n] for n in names]) for p in columns], 1)
    found = []
    for target in (mine, wanted):
        vector = torch.cat([target[n] for n in names])
        weights = torch.linalg.lstsq(matrix, vector.unsqueeze(1), driver="gelsd").solution
        if relative_distance([(matrix @ weights).squeeze(1)], [vector]) > 1e-4:
            return None
        found.append(weights.squeeze(1).tolist())
    return found[0], found[1]


def numbers(values: Sequence[float]) -> str:
    return ", ".join(f"{value:.4g}" for value in values)


def listed(values: Sequence[Any]) -> str:
    return ", ".join(str(value) for value in values)


# the update


def judge_clip(view: View) -> Finding | None:
    key = Key("clip norm", "norm")
    if key not in view.workers or key not in view.reference:
        return None
    wanted = float(view.reference[key][0].values[0])
    bound = max([*view.bounds("gradient").values(), *view.bounds("clip norm").values()])
    for noted in view.workers[key]:
        found = float(noted.values[0])
        if abs(found - wanted) > bound * abs(wanted):
            why = f"worker {noted.rank} clips by norm {found:.6g}, one process by {wanted:.6g}"
            return Finding(Cause.CLIPPING, view.step, "clip norm", "norm", why, worker=noted.rank)
    return None


def judge_settings(view: View, earlier: Sequence[tuple[int, Step]]) -> Finding | None:
    if earlier:
        found = fresh_optimizer(view, earlier)
        if found is not None:
            return found
    for key, each in view.workers.items():
        wanted = view.reference.get(key)
        if key.kind != "setting" or not wanted or each[0].text or each[0].values.numel() == 0:
            continue
        for noted in each:
            if " of group " in key.name and not torch.equal(noted.values, wanted[0].values):
                why = f"worker {noted.rank} has {float(noted.values):g}, one process {float(wanted[0].values):g}"
                return Finding(Cause.OPTIMIZER_STATE, view.step, "setting", key.name, why, worker=noted.rank)
    return None


def fresh_optimizer(view: View, earlier: Sequence[tuple[int, Step]]) -> Finding | None:
    """Another optimizer object took over, without the moments or the settings of the last."""
    before, now, first = earlier[-1][1], view.workers, earlier[0][1]
    which = number(now, "optimizer"), number(before, "optimizer")
    if which[0] == which[1] or which[0] in {number(step, "optimizer") for _, step in earlier}:
        return None
    had = [key for key in before if key.kind == "optimizer state"]
    if had and number(now, "states before") == 0:
        why = f"a new optimizer begins without the state that the one of step {earlier[-1][0]} had"
        return Finding(Cause.OPTIMIZER_STATE, view.step, "optimizer state", had[0].name, why)
    for key in now:
        name = key.name
        if key.kind != "setting" or " of group " not in name:
            continue
        if number(before, name) != number(now, name) == number(first, name):
            then = f"as at the start, not on from {number(before, name):g}"
            why = f"a new optimizer begins with {number(now, name):g} {then}"
            return Finding(Cause.OPTIMIZER_STATE, view.step, "setting", name, why)
    return None


def number(step: Step, setting: str) -> float | None:
    noted = step.get(Key("setting", setting))
    return float(noted[0].values[0]) if noted and noted[0].values.numel() else None


def judge_unchanged(view: View) -> Finding | None:
    rate = number(view.workers, "lr of group 0")
    gradients = view.per_rank("gradient")
    for key, each in view.workers.items():
        if key.kind == "parameter" and key.name.startswith("unchanged ") and rate:
            name = key.name.removeprefix("unchanged ")
            has = [n.rank for n in each if float(gradients[n.rank].get(name, torch.zeros(1)).norm()) > 0]
            others = sum(k.kind == "parameter" and not k.name.startswith("unchanged ") for k in view.workers)
            same = sum(k.kind == "parameter" and k.name.startswith("unchanged ") for k in view.workers)
            if has and same == others:
                why = f"no parameter of the {others} is changed by the step, though gradients are not zero"
                return Finding(Cause.STALE_WEIGHTS, view.step, "parameter", name, why, worker=has[0])
    return None


def judge_state(view: View) -> Finding | None:
    causes = {"optimizer state": Cause.OPTIMIZER_STATE, "parameter": Cause.STALE_WEIGHTS, "buffer": Cause.BUFFERS}
    layers = [layer for fact in view.facts for layer in fact.get("batchnorm", [])]
    for kind, cause in causes.items():
        wanted, bounds = view.alone(kind), view.bounds(kind)
        for key, each in view.workers.items():
            if key.kind != kind or key.name not in wanted or wanted[key.name].shape != each[0].values.shape:
                continue
            for noted in each:
                apart = relative_distance([noted.values], [wanted[key.name]])
                small = float((noted.values - wanted[key.name]).abs().max()) < 1e-7 if apart else True
                if apart > max(bounds[key.name], 1e-4 if kind != "buffer" else 0) and not small:
                    norm = any(key.name.rsplit(".", 1)[0] == layer for layer in layers)
                    why = f"worker {noted.rank}'s is {apart:.2g} from one process's, from gradients that are right"
                    return Finding(Cause.BATCHNORM if norm else cause, view.step, kind, key.name, why,
                                   worker=noted.rank, distance=apart)  # fmt: skip
    return None
