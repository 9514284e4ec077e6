"""Rows, random numbers and collectives; workers that stopped; and which step of whole records is judged."""

from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from made_steps import NAMES, Made, Process, made, seen, together

from samestep.verification.causes import Cause
from samestep.verification.record import Key, Record, RecordWriter
from samestep.verification.script.collective_order import Call, judge_collectives, order_differs
from samestep.verification.script.data_order import judge_passes
from samestep.verification.script.judge_runs import ScriptRecords, judge, judge_step, judge_stopped

ROWS = Key("rows", "batch", 0)

# rows and random numbers


def drawn(*rows: str, reference: str, total: int = 1000) -> Made:
    training = made(len(rows))
    for worker, mine in zip(training.workers, rows, strict=True):
        worker[ROWS] = mine
    training.reference[ROWS] = reference
    for fact in training.facts:
        fact["rows"] = total
    return training


@given(st.permutations("abcdef"), st.permutations("abcdef"))
def test_rows_may_be_divided_and_ordered_in_any_way(workers: list[str], reference: list[str]) -> None:
    training = drawn(" ".join(workers[:4]), " ".join(workers[4:]), reference=" ".join(reference))
    assert training.findings() == []


@given(st.permutations("abcdef"), st.integers(1, 3))
def test_rows_that_one_process_does_not_have_are_named_with_their_worker(rows: list[str], strangers: int) -> None:
    mine = [*rows[:3], *rows[3:]]
    mine[3 : 3 + strangers] = [f"strange-{n}" for n in range(strangers)]
    found = drawn(" ".join(mine[:3]), " ".join(mine[3:]), reference=" ".join(rows)).finding()
    assert (found.cause, found.kind, found.worker) == (Cause.DATA_ORDER, "rows", 1)
    assert f"{strangers} of the workers' 6 rows are not among those" in found.why


def test_rows_that_two_workers_use_are_named_with_both() -> None:
    found = drawn("a b", "c d", "a e", reference="a b c d e f").finding()
    assert (found.cause, found.worker) == (Cause.DATA_ORDER, 2)
    assert "1 of 5 rows are used more than once, the first by workers 0, 2" in found.why


@pytest.mark.parametrize("reference", ["a b c", "b c d e", "b b c c"], ids=["once", "never", "never, others twice"])
def test_two_workers_with_one_row_are_named_whatever_one_process_has(reference: str) -> None:
    found = drawn("a b", "a c", reference=reference).finding()
    assert "1 of 3 rows are used more than once, the first by workers 0, 1" in found.why


def test_a_row_that_is_in_the_data_twice_may_be_used_twice() -> None:
    assert drawn("a b", "a c", reference="a a b c").findings() == []
    found = drawn("a b", "a x", reference="a a b c").finding()
    assert found.worker == 1
    assert "1 of the workers' 4 rows are not among those" in found.why


def test_another_number_of_rows_asks_for_reference_arguments() -> None:
    found = drawn("a b", "c d", reference="a b").finding()
    assert found.cause is Cause.DATA_ORDER
    assert "workers use 4 rows, one process 2" in found.why
    assert "--reference-arguments" in found.why


def after(training: Made, *earlier: str) -> Made:
    training.earlier = [(step, together([{**training.reference, ROWS: rows}])) for step, rows in enumerate(earlier)]
    training.step = len(earlier)
    return training


def test_rows_that_come_again_before_all_had_a_turn_are_found_though_one_process_has_them_too() -> None:
    found = after(drawn("a b", "c x", reference="a b c x"), "k l m n", "a b c d").finding()
    assert (found.cause, found.step) == (Cause.DATA_ORDER, 2)
    assert "3 of 4 rows were used at step 1 already, before all 1000 rows had a turn" in found.why


def test_rows_may_come_again_in_another_pass_and_a_few_within_one() -> None:
    again = ("k l m n", "a b c d")
    assert after(drawn("a b", "c x", reference="a b c x", total=11), *again).findings() == []
    assert after(drawn("a b", "y x", reference="a b y x"), *again).findings() == []
    assert after(drawn("a b", "c x", reference="a b c x", total=12), *again).findings() != []


def test_what_notes_no_rows_is_not_judged_by_them() -> None:
    training = made()
    training.remove("rows")
    assert training.findings() == []


def passes(*each: tuple[int, str, bool]) -> list[dict[str, Any]]:
    return [{"passes": [[step, digest, shuffled, 0, 64] for step, digest, shuffled in each]}]


def test_two_shuffled_passes_with_one_order_are_found() -> None:
    found = judge_passes(passes((0, "one", True), (4, "two", True), (8, "two", True)))
    assert found is not None
    assert (found.cause, found.step, found.name) == (Cause.DATA_ORDER, 8, "sampler")
    assert "from step 4 and from step 8" in found.why


@pytest.mark.parametrize(
    "each",
    [
        [],
        [(0, "one", True), (4, "two", True)],
        [(0, "one", False), (4, "one", False)],  # not shuffled
        [(0, "one", True), (0, "one", True)],  # two loaders, or one that was looked into
    ],
)
def test_other_passes_are_right(each: list[tuple[int, str, bool]]) -> None:
    assert judge_passes(passes(*each)) is None


@given(st.lists(st.sampled_from(["a", "b", None]), min_size=2, max_size=4), st.integers(0, 1))
def test_one_state_of_all_generators_is_found_at_the_first_step(streams: list[str | None], step: int) -> None:
    training = made(len(streams))
    training.step = step
    for fact, stream in zip(training.facts, streams, strict=True):
        fact["stream"] = stream
    causes = [found.cause for found in training.findings()]
    assert causes == ([Cause.RANDOM_STREAM] if step == 0 and len(set(streams)) == 1 and streams[0] else [])


# collectives


def call(what: str, tensor: str = "", step: int = 0, line: int = 1, size: int = 2) -> Call:
    return step, what, tensor, (size,), f"train.py:{line}"


A, B, BARRIER = call("all_reduce", "a"), call("all_reduce", "b"), call("barrier", line=7)


def test_the_first_collective_that_does_not_meet_is_named() -> None:
    found = order_differs({0: [BARRIER, A, B], 1: [BARRIER, A, B], 2: [BARRIER, B, A]})
    assert found is not None
    assert (found.cause, found.kind, found.name, found.worker) == (Cause.COLLECTIVE_ORDER, "collective", "a", 2)
    assert "collective 2: worker 0 enters all_reduce a [2] at train.py:1, worker 2 enters all_reduce b" in found.why


@given(st.lists(st.sampled_from([A, B, BARRIER]), max_size=6), st.integers(2, 4), st.data())
def test_who_enters_one_more_or_one_less_is_named(calls: list[Call], workers: int, data: st.DataObject) -> None:
    each = {rank: list(calls) for rank in range(workers)}
    assert order_differs(each) is None
    rank = data.draw(st.integers(1, workers - 1))
    each[rank].append(BARRIER)
    more = order_differs(each)
    assert more is not None
    assert (more.worker, more.why) == (rank, f"only worker {rank} enters barrier [2] at train.py:7")
    each[0] += [BARRIER, A]
    less = order_differs({0: each[0], 1: each[rank]})
    assert less is not None
    assert (less.worker, less.name) == (0, "a")


@pytest.mark.parametrize(
    ("one", "other", "meet"),
    [
        (call("all_reduce", "a"), call("all_reduce", "a", line=2), True),
        (call("all_reduce"), call("all_reduce", line=2), False),  # of what has no name the line must be one
        (call("broadcast"), call("broadcast", line=2), True),  # a root may have a line of its own
        (call("all_reduce", "a"), call("all_reduce", "a", size=3), False),
        (call("all_reduce", "a"), call("reduce", "a"), False),
        (call("send"), call("recv"), True),  # between two: no order that all keep
        (call("send"), call("all_reduce"), False),
    ],
)
def test_what_meets(one: Call, other: Call, meet: bool) -> None:
    assert (order_differs({0: [one], 1: [other]}) is None) == meet


def test_only_the_steps_own_collectives_are_judged_in_it() -> None:
    workers = [seen(0, A, call("barrier", step=1)), seen(1, A)]
    assert judge_collectives(0, workers) is None
    found = judge_collectives(1, workers)
    assert found is not None
    assert (found.step, found.worker) == (1, 0)


def test_the_order_comes_before_gradients_and_after_rows() -> None:
    training = made()
    training.get(0, {"a.bias": torch.ones(5)})
    (found,) = judge_step(training.view(), [], [seen(0, A), seen(1, B)])
    assert found.cause is Cause.COLLECTIVE_ORDER
    training.workers[0][ROWS] = "another row"
    (found,) = judge_step(training.view(), [], [seen(0, A), seen(1, B)])
    assert found.cause is Cause.DATA_ORDER


# workers that stopped

STACK = """Thread 1 (most recent call first):
  File "/usr/lib/torch/distributed.py", line 5 in wait
  File "/home/train.py", line 12 in main
"""


def test_an_order_that_differs_explains_why_they_stopped() -> None:
    found = judge_stopped([seen(0, A, status=-9, killed=True), seen(1, B, status=1)], 60)
    assert found.cause is Cause.COLLECTIVE_ORDER


def test_who_crashed_is_named_with_its_last_words() -> None:
    workers = [
        seen(0, A, status=-9, killed=True),
        seen(1, A, status=3, last_lines=("Traceback", "in main", "ValueError: no")),
    ]
    found = judge_stopped(workers, 60)
    assert (found.cause, found.worker) == (Cause.UNKNOWN, 1)
    assert found.why == "worker 1 ended with 3: in main / ValueError: no"


def test_who_hangs_outside_of_collectives_is_named_with_its_line() -> None:
    barrier = call("barrier", step=3)
    inside = seen(0, barrier, status=-9, killed=True, in_collective=True)
    late = seen(1, barrier, status=-9, killed=True, stack=STACK)
    found = judge_stopped([inside, late, seen(2, barrier)], 60)
    assert (found.cause, found.step, found.worker) == (Cause.HANG, 3, 1)
    assert found.why == (
        "after 60 s worker 0 is in barrier [2] at train.py:1; "
        'worker 1 is in File "/home/train.py", line 12 in main; worker 2 ended'
    )


def test_a_worker_that_left_no_stack_is_said_to_have_none() -> None:
    assert "a place that left no stack" in judge_stopped([seen(0, status=-9, killed=True), seen(1)], 60).why


# whole records


def write(folder: Path, steps: list[list[Process]]) -> Record:
    folder.mkdir()
    for step, processes in enumerate(steps):
        for rank, one in enumerate(processes):
            recorder = RecordWriter(folder, rank)
            for key, value in one.items():
                recorder.note(key, value)
            recorder.end_step(step)
    return Record(folder)


def runs(folder: Path, trainings: list[Made], again: list[Process] | None = None) -> ScriptRecords:
    reference = [[training.reference] for training in trainings]
    return ScriptRecords(
        workers=write(folder / "workers", [training.workers for training in trainings]),
        reference=write(folder / "reference", reference),
        again=write(folder / "again", reference if again is None else [[one] for one in again]),
        perturbed=write(folder / "perturbed", [[training.perturbed] for training in trainings]),
        facts=tuple(trainings[0].facts),
        observed=tuple(seen(rank) for rank in range(len(trainings[0].workers))),
    )


def three_steps() -> list[Made]:
    trainings = [made(2, 1, seed) for seed in range(3)]
    for step, training in enumerate(trainings):
        for rank, worker in enumerate(training.workers):
            worker[ROWS] = f"row-{step}-{rank}"
        training.reference[ROWS] = f"row-{step}-0 row-{step}-1"
    return trainings


def test_right_records_have_no_finding_and_all_tensors_are_counted(tmp_path: Path) -> None:
    trainings = three_steps()
    count = sum(len(worker) for training in trainings for worker in training.workers)
    assert judge(runs(tmp_path, trainings)) == ([], count)


def test_the_first_step_with_a_difference_is_judged_and_no_later_one(tmp_path: Path) -> None:
    trainings = three_steps()
    trainings[1].get(0, {name: value * 2 for name, value in trainings[1].combined().items()})
    trainings[1].get(1, {name: value * 2 for name, value in trainings[1].combined().items()})
    trainings[2].workers[0][ROWS] = "another"
    (found,), count = judge(runs(tmp_path, trainings))
    assert (found.cause, found.step) == (Cause.LOSS_WEIGHTING, 1)
    assert count == sum(len(worker) for training in trainings[:2] for worker in training.workers)


@pytest.mark.parametrize("at", range(3))
def test_what_one_process_does_not_repeat_is_said_and_nothing_else(at: int, tmp_path: Path) -> None:
    trainings = three_steps()
    trainings[0].get(0, trainings[0].parts[0][0])
    for training in trainings:  # noted before what a step makes earlier
        training.reference = {Key("buffer", "early"): torch.ones(5), **training.reference}
    again = [dict(training.reference) for training in trainings]
    again[at][Key("gradient", "a.bias")] = torch.zeros(5)
    again[at][Key("buffer", "early")] = torch.zeros(5)
    findings, _ = judge(runs(tmp_path, trainings, again))
    assert [(f.cause, f.step, f.kind, f.name) for f in findings] == [
        (Cause.NOT_DETERMINISTIC, at, "gradient", "a.bias")
    ]


def test_equal_nans_repeat_and_are_named_at_the_worker(tmp_path: Path) -> None:
    """One process has the row as well, and the same NaN twice."""
    trainings = three_steps()
    spoilt = torch.full((5,), torch.nan)
    for one in (trainings[1].workers[1], trainings[1].reference, trainings[1].perturbed):
        one[Key("local gradient", "a.bias", 0)] = spoilt
    (found,), _ = judge(runs(tmp_path, trainings))
    assert (found.cause, found.step, found.worker) == (Cause.NOT_FINITE, 1, 1)


def test_passes_are_judged_beside_the_first_difference_unless_that_is_of_rows(tmp_path: Path) -> None:
    for name, changed in (("gradient", Key("gradient", NAMES[0])), ("rows", ROWS)):
        trainings = three_steps()
        trainings[0].facts[0]["passes"] = passes((0, "one", True), (4, "one", True))[0]["passes"]
        trainings[0].workers[0][changed] = "another" if changed == ROWS else torch.ones(12)
        (tmp_path / name).mkdir()
        findings, _ = judge(runs(tmp_path / name, trainings))
        assert [f.name for f in findings] == (["batch"] if name == "rows" else [NAMES[0], "sampler"])
