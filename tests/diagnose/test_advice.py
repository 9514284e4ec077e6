"""Each rule speaks where it should, and is silent where it should not."""

import re
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from samestep.diagnose.advice import RULES, advice, best_shares
from samestep.diagnose.trace_medians import TraceMedians
from samestep.plan.prediction import PARTS, Prediction

BALANCED = TraceMedians(
    steps=10,
    seconds=1.0,
    busy=({"Forward": 0.3, "Backward": 0.6}, {"Forward": 0.3, "Backward": 0.6}),
    waits={},
    under_way=({}, {}),
    hosts=(0, 0),
    shards=(4, 4),
    is_staged=False,
    is_sliced=False,
)


def seen(**fields: Any) -> TraceMedians:
    return replace(BALANCED, **fields)


def predicted(**kinds: float) -> Prediction:
    return Prediction(1.0, 0.9, 1.1, dict.fromkeys(PARTS, 0.0), [kinds, kinds])


def test_nothing_is_said_of_a_step_that_computes() -> None:
    assert advice(BALANCED, predicted(Forward=0.3, Backward=0.6)) == []
    assert [rule(BALANCED) for rule in RULES if rule(BALANCED) and rule(BALANCED).share > 0] == []  # type: ignore[union-attr]


def test_a_slow_worker_gets_fewer_shards() -> None:
    busy = ({"Forward": 0.2, "Backward": 0.4}, {"Forward": 0.33, "Backward": 0.65})
    assert advice(seen(busy=busy, waits={(0, 1): 0.38})) == [
        "worker 1 is waited for 38% of the step: give it fewer shards: --assign 5,3"
    ]


def test_a_worker_with_more_than_its_share_gets_fewer_too() -> None:
    [said] = advice(seen(busy=({"Forward": 0.2}, {"Forward": 0.6}), shards=(2, 6), waits={(0, 1): 0.4}))
    assert said.endswith("--assign 4,4")


def test_three_shards_for_two_workers_cannot_be_shared_better() -> None:
    [said] = advice(seen(busy=({"Forward": 0.4}, {"Forward": 0.8}), shards=(1, 2), waits={(0, 1): 0.4}))
    assert "3 shards cannot be shared out better" in said
    assert "--assign" not in said


def test_a_worker_that_is_late_for_another_reason_is_not_given_fewer_shards() -> None:
    assert advice(seen(waits={(0, 1): 0.4})) == []


def test_stages_of_different_lengths_want_another_cut() -> None:
    busy = ({"Forward": 0.9, "Send": 0.1}, {"Forward": 0.3, "Receive": 0.1})
    [said] = advice(seen(busy=busy, waits={(1, 0): 0.5}, is_staged=True))
    assert said.startswith("worker 0 computes 3.0 times as long as worker 1: give its stage fewer layers")


def test_equal_stages_that_wait_want_more_shards() -> None:
    [said] = advice(seen(busy=({"Forward": 0.6}, {"Forward": 0.6}), waits={(0, 1): 0.3, (1, 0): 0.3}, is_staged=True))
    assert said.startswith("stages wait for one another 30% of the step: a batch of more shards")


def test_a_slow_link_wants_slices_or_a_codec() -> None:
    busy = ({"Forward": 0.1, "Reduce": 0.3}, {"Forward": 0.1, "Reduce": 0.1})
    slow = seen(busy=busy, under_way=({"Reduce": 0.52}, {"Publish": 0.2}), hosts=(0, 1))
    [said] = advice(slow)
    assert said.startswith("82% of the step goes into bytes between hosts, most of it Reduce: slice large layers")
    assert "--codec" in said
    assert not any("between hosts" in line for line in advice(replace(slow, hosts=(0, 0))))


@pytest.mark.parametrize(("kind", "said"), [("Receive", "cut where"), ("SliceForward", "leave layers whole")])
def test_what_helps_depends_on_what_is_moved(kind: str, said: str) -> None:
    [line] = advice(seen(under_way=({}, {kind: 0.5}), hosts=(0, 1), is_sliced=kind == "SliceForward"))
    assert f"most of it {kind}: {said}" in line


def test_small_shards_want_to_be_fewer() -> None:
    busy = ({"Forward": 3e-4, "Backward": 3e-4, "Agree": 2e-4, "Reduce": 1e-4},) * 2
    small = seen(seconds=1e-3, busy=busy, under_way=({"Agree": 1e-4}, {"Publish": 1e-4}))
    assert advice(small) == [
        "shards are small (0.15 ms each): what is around them takes 40%: "
        "--shards 2 (part of the numbers), or --workers 1"
    ]
    assert advice(replace(small, shards=(1, 1)))[0].endswith("takes 40%: --workers 1")


def test_rows_that_take_long_want_loaders() -> None:
    [said] = advice(seen(busy=({"Load": 0.1, "Forward": 0.5}, {"Load": 0.4, "Forward": 0.5})))
    assert said.startswith("worker 1 takes its rows for 40% of the step")


def test_what_is_not_as_predicted_is_said() -> None:
    [said] = advice(BALANCED, predicted(Forward=0.3, Backward=0.3))
    assert said.startswith("Backward took 2.0 times what was predicted")
    assert advice(BALANCED, predicted(Forward=0.3, Backward=0.5)) == []


def test_the_two_largest_are_said() -> None:
    busy = ({"Load": 0.2, "Forward": 0.2, "Agree": 0.3}, {"Load": 0.2, "Forward": 0.6, "Agree": 0.3})
    lines = advice(seen(busy=busy, waits={(0, 1): 0.4}))
    assert [re.split(r" (?:is|are|takes) ", line)[0] for line in lines] == ["worker 1", "shards"]


@given(st.lists(st.floats(0.1, 10), min_size=1, max_size=3), st.integers(0, 6))
def test_no_other_shares_are_done_sooner(costs: list[float], more: int) -> None:
    total = len(costs) + more
    found = best_shares(costs, total)
    assert sum(found) == total
    assert min(found) >= 1

    def all_shares(workers: int, left: int) -> list[tuple[int, ...]]:
        if workers == 1:
            return [(left,)]
        return [(own, *rest) for own in range(1, left - workers + 2) for rest in all_shares(workers - 1, left - own)]

    best = min(max(c * n for c, n in zip(costs, counts, strict=True)) for counts in all_shares(len(costs), total))
    assert max(c * n for c, n in zip(costs, found, strict=True)) == pytest.approx(best)
