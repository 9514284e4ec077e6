"""Rows of the data that workers draw, and the random state that they draw dropout from.

All workers' rows of a step, as a multiset, must be one process's; none comes again before every row had its turn; and
two passes over the data have two orders.
"""

from collections import Counter
from collections.abc import Sequence
from itertools import pairwise

from samestep.verification.causes import Cause, Finding
from samestep.verification.record import Step
from samestep.verification.script.step_records import Facts, StepRecords


def rows_by_rank(step: Step) -> dict[int, list[str]]:
    found: dict[int, list[str]] = {}
    for key, each in step.items():
        if key.kind == "rows":
            for noted in each:
                found.setdefault(noted.rank, []).extend(noted.text.split())
    return found


def judge_rows(view: StepRecords, earlier: Sequence[tuple[int, Step]]) -> Finding | None:
    mine = rows_by_rank(view.workers)
    union = Counter(row for rows in mine.values() for row in rows)
    wanted = Counter(row for rows in rows_by_rank(view.reference).values() for row in rows)
    if not union or not wanted:
        return None
    repeated = judge_repeats(view, union, earlier)
    if repeated is not None:
        return repeated
    if union == wanted:
        return None

    def finding(why: str, worker: int | None = None) -> Finding:
        return Finding(Cause.DATA_ORDER, view.step, "rows", "batch", why, worker=worker)

    twice = [row for row, count in union.items() if count > wanted[row] > 0 or (count > 1 and wanted[row] == 0)]
    if twice:
        who = [rank for rank, rows in mine.items() if twice[0] in rows]
        why = f"{len(twice)} of {len(union)} rows are used more than once, the first by workers "
        return finding(why + ", ".join(map(str, who)), who[-1])
    if union.total() != wanted.total():
        return finding(
            f"workers use {union.total()} rows, one process {wanted.total()}; if the batch size is a "
            "worker's, give one process the whole with --reference-arguments"
        )
    strangers = (union - wanted).total()
    worker = next(rank for rank, rows in mine.items() if Counter(rows) - wanted)
    return finding(f"{strangers} of the workers' {union.total()} rows are not among those of one process", worker)


def judge_repeats(view: StepRecords, union: Counter[str], earlier: Sequence[tuple[int, Step]]) -> Finding | None:
    """A step that uses rows of an earlier one, within the first pass over the data."""
    past = [(step, Counter(row for rows in rows_by_rank(noted).values() for row in rows)) for step, noted in earlier]
    used = union.total() + sum(rows.total() for _, rows in past)
    total = max((fact.get("rows", 0) for fact in view.facts), default=0)
    if used > total:
        return None
    for step, rows in past:
        again = sum(row in rows for row in union)
        if 2 * again > len(union):
            why = f"{again} of {len(union)} rows were used at step {step} already, before all {total} rows had a turn"
            return Finding(Cause.DATA_ORDER, view.step, "rows", "batch", why)
    return None


def judge_passes(facts: Sequence[Facts]) -> Finding | None:
    """Shuffled passes over the data that begin at different steps of the run and have one order."""
    for fact in facts[:1]:
        passes = [one for one in fact.get("passes", []) if one[2]]
        for one, other in pairwise(passes):
            if one[1] == other[1] and one[0] < other[0]:
                why = f"two passes, from step {one[0]} and from step {other[0]}, have one order; call set_epoch"
                return Finding(Cause.DATA_ORDER, other[0], "rows", "sampler", why)
    return None


def judge_stream(view: StepRecords) -> Finding | None:
    streams = [fact.get("stream") for fact in view.facts]
    if view.step == 0 and len(streams) > 1 and streams[0] is not None and len(set(streams)) == 1:
        why = "all workers draw dropout from generators in one state: different rows get one mask; seed by rank"
        return Finding(Cause.RANDOM_STREAM, view.step, "random stream", "dropout", why)
    return None
