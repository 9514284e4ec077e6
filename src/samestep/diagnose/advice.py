"""Advice on a plan: independent rules, each returning one suggestion or None.

rule        condition                                        suggestion
uneven      others wait for one worker and have room         --assign
cuts        stages compute for different times               move layers
bubble      equal stages wait for one another                more shards
link        bytes under way between hosts                    other plan, --codec
small       much time around the shards, on one host         fewer shards, one worker
loading     a worker takes its rows                          loader processes
surprise    one kind of action is not as predicted           look for other programs
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

from samestep.diagnose.trace_medians import COMMUNICATE, TraceMedians
from samestep.plan.prediction import Prediction
from samestep.planner.search.greedy_shares import greedy_shares

LEAST = 0.1  # share of a step below which advice is not worth a line
MOST_LINES = 2
AROUND = ("Agree", "Reduce", "Publish", "MergeBuffers", "Clip")


@dataclass(frozen=True)
class Advice:
    """One suggestion."""

    share: float  # of the step that it concerns
    text: str


Rule = Callable[[TraceMedians], Advice | None]


def advice(seen: TraceMedians, prediction: Prediction | None = None) -> list[str]:
    """The suggestions that concern most of the step, at most two."""
    found = [rule(seen) for rule in RULES]
    found.append(None if prediction is None else surprise(seen, prediction))
    worth = sorted((one for one in found if one is not None and one.share >= LEAST), key=lambda one: -one.share)
    return [one.text for one in worth[:MOST_LINES]]


def uneven(seen: TraceMedians) -> Advice | None:
    """Workers compute their shards for different times, and whole shards can be moved."""
    if not seen.waits or seen.is_staged or seen.is_sliced or 0 in seen.shards:
        return None
    (waiter, cause), seconds = max(seen.waits.items(), key=lambda item: item[1])
    compute = seen.compute
    if compute[cause] - compute[waiter] < seconds / 2:  # it is late for another reason
        return None
    costs = [own / shards for own, shards in zip(compute, seen.shards, strict=True)]
    better = best_shares(costs, sum(seen.shards))
    gain = max(compute) - max(cost * count for cost, count in zip(costs, better, strict=True))
    share = seconds / seen.seconds
    if gain > 0.03 * seen.seconds:
        fewer = f"give it fewer shards: --assign {','.join(map(str, better))}"
        return Advice(share, f"worker {cause} is waited for {share:.0%} of the step: {fewer}")
    return Advice(
        share,
        f"worker {cause} is waited for {share:.0%} of the step, and {sum(seen.shards)} shards cannot be shared out "
        "better: more of them could (--shards, part of the numbers)",
    )


def best_shares(costs: Sequence[float], shards: int) -> tuple[int, ...]:
    """Shards of each worker, at least one, so that the last is done as early as can be. costs: seconds per shard."""
    return greedy_shares(shards, [partial(_done, cost) for cost in costs])


def _done(cost: float, count: int) -> float:
    """The second in which a worker is done with `count` shards; before 0 for the first, which everyone gets."""
    return cost * count if count > 1 else -1.0


def cuts(seen: TraceMedians) -> Advice | None:
    compute = seen.compute
    if not seen.is_staged or max(compute) < 1.2 * min(compute):
        return None
    most, least = compute.index(max(compute)), compute.index(min(compute))
    share = (max(compute) - sum(compute) / len(compute)) / seen.seconds
    times = f"{max(compute) / min(compute):.1f} times as long as" if min(compute) else "and not"
    return Advice(
        share,
        f"worker {most} computes {times} worker {least}: give its stage fewer layers (`first` in the plan file), or "
        "more workers",
    )


def bubble(seen: TraceMedians) -> Advice | None:
    compute = seen.compute
    if not seen.is_staged or max(compute) >= 1.2 * min(compute):
        return None
    waiting = [sum(s for (waiter, _), s in seen.waits.items() if waiter == rank) for rank in range(seen.workers)]
    share = max(waiting) / seen.seconds
    return Advice(
        share,
        f"stages wait for one another {share:.0%} of the step: a batch of more shards fills them better "
        "(--shards, part of the numbers), or try --plan data",
    )


def link(seen: TraceMedians) -> Advice | None:
    if len(set(seen.hosts)) < 2:
        return None
    spent = [{kind: moving_seconds(seen, rank, kind) for kind in MOVING} for rank in range(seen.workers)]
    worst = max(spent, key=lambda own: sum(own.values()))
    share, kind = sum(worst.values()) / seen.seconds, max(worst, key=worst.__getitem__)
    if share < 0.3:
        return None
    return Advice(share, f"{share:.0%} of the step goes into bytes between hosts, most of it {kind}: {REMEDIES[kind]}")


def moving_seconds(seen: TraceMedians, rank: int, kind: str) -> float:
    """Seconds that a worker spends on bytes: busy with them, and waiting for them under way."""
    busy = seen.busy[rank].get(kind, 0.0) if kind in COMMUNICATE else 0.0
    return busy + seen.under_way[rank].get(kind, 0.0)


GRADIENTS = "slice large layers (--plan hybrid) or compress gradients (--codec, part of the numbers)"
ACTIVATIONS = "cut where less is carried over (`first` in the plan file)"
SLICES = "leave layers whole (--plan data), or keep a sliced layer's workers on one host"
REMEDIES = {
    "Reduce": GRADIENTS, "Publish": GRADIENTS, "Agree": GRADIENTS, "Post": GRADIENTS, "Await": GRADIENTS,
    "Send": ACTIVATIONS, "Receive": ACTIVATIONS, "SendGradient": ACTIVATIONS, "ReceiveGradient": ACTIVATIONS,
    "SliceForward": SLICES, "SliceBackward": SLICES,
}  # fmt: skip
MOVING = tuple(REMEDIES)


def small(seen: TraceMedians) -> Advice | None:
    if len(set(seen.hosts)) > 1 or seen.workers == 1 or seen.is_staged or seen.is_sliced or 0 in seen.shards:
        return None
    around = [seen.busy_in(rank, AROUND) + sum(seen.under_way[rank].values()) for rank in range(seen.workers)]
    share = sum(around) / seen.workers / seen.seconds
    if share < 0.25:
        return None
    each = sum(seen.compute) / sum(seen.shards) * 1e3
    fewer = f"--shards {seen.workers} (part of the numbers), or " if sum(seen.shards) > seen.workers else ""
    return Advice(
        share, f"shards are small ({each:.2g} ms each): what is around them takes {share:.0%}: {fewer}--workers 1"
    )


def loading(seen: TraceMedians) -> Advice | None:
    spent = [own.get("Load", 0.0) for own in seen.busy]
    share = max(spent) / seen.seconds
    return Advice(
        share,
        f"worker {spent.index(max(spent))} takes its rows for {share:.0%} of the step: let loader processes do it "
        "(Job.num_loader_workers)",
    )


RULES: tuple[Rule, ...] = (uneven, cuts, bubble, link, small, loading)


def surprise(seen: TraceMedians, prediction: Prediction) -> Advice | None:
    kinds = {kind for own in prediction.actions for kind in own} & {kind for own in seen.busy for kind in own}
    expected = {kind: sum(own.get(kind, 0.0) for own in prediction.actions) for kind in kinds}
    off = {kind: seen.total(kind) - expected[kind] for kind in kinds if expected[kind] > 0}
    if not off:
        return None
    kind = max(off, key=lambda one: abs(off[one]))
    ratio = seen.total(kind) / expected[kind]
    if 2 / 3 < ratio < 1.5:
        return None
    return Advice(
        abs(off[kind]) / seen.workers / seen.seconds,
        f"{kind} took {ratio:.1f} times what was predicted: see whether something else uses the machine; if nothing "
        "does, the profile is of another one",
    )
