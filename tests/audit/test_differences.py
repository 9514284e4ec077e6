import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from samestep.audit.differences import Again, difference, differing, first_difference, nearest, packed, text_of
from samestep.audit.fingerprint import key_of


@given(
    names=st.sets(st.text(max_size=5), min_size=1, max_size=20),
    workers=st.integers(2, 5),
    data=st.data(),
)
def test_exactly_what_differs_between_holders_is_found(names: set[str], workers: int, data: st.DataObject) -> None:
    records: list[dict[str, int]] = [{} for _ in range(workers)]
    wrong = set()
    for name in names:
        holders = data.draw(st.sets(st.integers(0, workers - 1), min_size=1))
        values = {rank: data.draw(st.integers(0, 1)) << 63 for rank in holders}
        for rank, value in values.items():
            records[rank][name] = value
        if len(set(values.values())) > 1:
            wrong.add(key_of(name))
    assert differing([packed(record) for record in records]) == wrong


def test_the_majority_is_right() -> None:
    found = difference("buffer a", {0: 1, 1: 2, 2: 1, 3: 1})
    assert found.sides == ((0, 2, 3), (1,))
    assert found.culprits == (1,)
    assert "between workers 0, 2, 3 and worker 1" in text_of(found, 64, 32)
    assert "culprit is worker 1" in text_of(found, 64, 32)


def test_of_two_nobody_is_named_unless_somebody_knows_what_is_right() -> None:
    assert difference("x", {0: 1, 1: 2}).culprits == ()
    assert "culprit" not in text_of(difference("x", {0: 1, 1: 2}), 64, 32)
    assert difference("x", {0: 1, 1: 2}, right=2).culprits == (0,)
    assert difference("x", {0: 1, 1: 2, 2: 1}, right=2).culprits == (0, 2), "knowing is more than a majority"


def test_what_differs_besides_is_told() -> None:
    found = difference("x", {0: 1, 1: 2})
    assert "differs between worker 0 and worker 1, which must be equal; the" in text_of(found, 64, 32)
    assert "must be equal (so does y); the" in text_of(found, 64, 32, ["y"])
    assert "must be equal (so do y, z and 2 more); the" in text_of(found, 64, 32, ["y", "z", "a", "b"])


def test_two_against_two_is_no_majority() -> None:
    assert difference("x", {0: 1, 1: 2, 2: 1, 3: 2}).culprits == ()
    assert difference("x", {0: 1, 1: 2, 2: 3}).culprits == ()


def test_of_two_sides_the_nearer_one_to_what_one_worker_finds_is_right() -> None:
    found = difference("x", {0: 1, 1: 2, 2: 1, 3: 2})
    again = Again("the start", {0: 0.5, 1: 0.25})
    assert nearest(found, again.distances).culprits == (0, 2)
    text = text_of(nearest(found, again.distances), 64, 32, (), again)
    assert "The culprit is workers 0, 2: " in text
    assert "all steps since the start again" in text
    assert "worker 0 by 0.5 in all, worker 1 by 0.25" in text
    assert nearest(found, {0: math.inf, 1: 3.0}).culprits == (0, 2), "what is no number is far away"


@pytest.mark.parametrize("distances", [{0: 0.5, 1: 0.5}, {0: math.inf, 1: math.inf}])
def test_of_two_sides_that_are_as_far_none_is_named(distances: dict[int, float]) -> None:
    found = nearest(difference("x", {0: 1, 1: 2}), distances)
    assert found.culprits == ()
    assert "as far from what one worker finds" in text_of(found, 64, 32, (), Again("the start", distances))


def test_where_plain_values_differ() -> None:
    a = {"optimizer": [{"lr": 0.1}, {"lr": 0.2}], "step": 3}
    assert first_difference(a, {"optimizer": [{"lr": 0.1}, {"lr": 0.3}], "step": 3}) == "optimizer 1 lr"
    assert first_difference(a, a) is None
    assert first_difference({"a": [1]}, {"a": [1, 2]}) == "a"
