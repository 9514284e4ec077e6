"""Taking turns, with real processes that do nothing but tell how often they were asked."""

import os
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import psutil
import pytest
from hypothesis import given
from hypothesis import strategies as st

import samestep
from samestep.bench.contenders.contender_process import Contender, DoesNotApply, Failed
from samestep.bench.rounds import WARM, TimeBudget, order_of, race

SOURCES = Path(samestep.__file__).parents[1]

COUNTING = """
import sys
sys.path.append(sys.argv[1])
from samestep.bench.contenders.contender_turns import ContenderTurns, Pipes
turns, asked = ContenderTurns(Pipes(*sys.argv[2:])), 0
turns.say(ready=True, loss=sys.stdin.read())
while steps := turns.wait():
    asked += 1
    turns.say(seconds=[0.0] * (steps - 1) + [steps / 1000], loss=asked)
"""
REFUSING = COUNTING.replace("ready=True", "refused='the moon is full', ready=True")
FAILING = COUNTING.replace("asked += 1", "print('dust in the works', file=sys.stderr); sys.exit(7)")
BUSY = COUNTING.replace("asked += 1", "turns.say(failed='no memory')")


def contender(code: str, message: str = "0") -> Contender:
    return Contender([sys.executable, "-c", code, str(SOURCES)], dict(os.environ), message)


def makers(*codes: str) -> dict[str, Callable[[], Contender]]:
    return {f"contender {number}": partial(contender, code) for number, code in enumerate(codes)}


def open_files() -> set[str]:
    return {f"{one.name} {one.readlink()}" for one in Path("/proc/self/fd").iterdir() if one.exists()}


def test_a_contender_hears_its_message_and_answers_with_the_steps_that_count() -> None:
    before = open_files()
    one = contender(COUNTING, "a message")
    assert one.wait_until_ready() == {"ready": True, "loss": "a message"}
    assert one.turn(3, warm=2) == ([0.0, 0.0, 0.005], 1)
    assert one.turn(1) == ([0.001], 2)
    one.stop()
    assert not psutil.pid_exists(one.process.pid)
    assert open_files() == before


def test_everybody_gets_as_many_rounds_of_as_many_steps() -> None:
    before = open_files()
    found = race(makers(COUNTING, COUNTING, COUNTING), TimeBudget(60.0, rounds=4, steps=1))
    assert [one.medians for one in found.values()] == [[(1 + WARM) / 1000] * 4] * 3
    assert [one.losses for one in found.values()] == [["0", 1, 2, 3, 4, 5]] * 3  # coming up, a trial, the rounds
    assert open_files() == before


def test_those_that_refuse_or_fail_drop_out_with_their_reason_and_the_others_go_on() -> None:
    found = list(race(makers(REFUSING, COUNTING, FAILING, BUSY), TimeBudget(60.0, rounds=2, steps=1)).values())
    assert (found[0].refused, found[0].failed, found[0].medians) == ("the moon is full", None, [])
    assert (found[1].refused, found[1].failed, len(found[1].medians)) == (None, None, 2)
    assert (found[2].refused, found[2].failed) == (None, "it ended with exit status 7: dust in the works")
    assert found[3].failed == "no memory"


def test_one_that_does_not_answer_in_time_has_failed() -> None:
    one = contender(COUNTING)
    one.wait_until_ready()
    psutil.Process(one.process.pid).suspend()
    with pytest.raises(Failed, match="no answer within 0 s"):
        one.turn(1, patience=0.0)
    psutil.Process(one.process.pid).resume()
    one.stop()


def test_one_that_is_killed_has_failed() -> None:
    one = contender(COUNTING)
    one.process.kill()
    with pytest.raises(Failed, match="it ended with exit status -9, without a word"):
        one.wait_until_ready()
    one.stop()


def test_one_that_does_not_apply_says_so() -> None:
    one = contender(REFUSING)
    with pytest.raises(DoesNotApply, match="the moon is full"):
        one.wait_until_ready()
    one.stop()


def test_an_interrupted_race_leaves_no_process() -> None:
    started: list[Contender] = []

    def noted(code: str) -> Contender:
        started.append(contender(code))
        return started[-1]

    def interrupt(text: str) -> None:
        if text.startswith("round 2"):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        race({name: partial(noted, COUNTING) for name in "ab"}, TimeBudget(60.0, rounds=4, steps=1), interrupt)
    assert [psutil.pid_exists(one.process.pid) for one in started] == [False, False]


@given(st.lists(st.text(min_size=1), unique=True), st.integers(0, 50))
def test_a_round_has_everybody_once_in_an_order_that_does_not_change(names: list[str], number: int) -> None:
    assert sorted(order_of(names, number)) == sorted(names)
    assert order_of(names, number) == order_of(names, number)


def test_orders_differ_from_round_to_round() -> None:
    assert len({tuple(order_of("abcd", number)) for number in range(20)}) > 5


@given(st.lists(st.floats(1e-6, 100.0), min_size=1, max_size=12), st.floats(0.0, 600.0))
def test_turns_fit_the_time_where_they_can(step_seconds: list[float], left: float) -> None:
    pace = TimeBudget(left)
    steps = pace.steps_of(step_seconds, left)
    assert 1 <= steps <= pace.MOST
    assert steps == 1 or (steps + WARM) * sum(step_seconds) * pace.ROUNDS <= left * 1.001


def test_rounds_end_with_the_time_but_not_before_the_fewest() -> None:
    assert [TimeBudget(1.0).goes_on(done, 5.0, left) for done, left in ((2, 0.0), (3, 4.0), (3, 6.0))] == [
        True,
        False,
        True,
    ]
    assert [TimeBudget(1.0, rounds=2).goes_on(done, 5.0, 0.0) for done in (1, 2)] == [True, False]
