"""The greedy rule is as good as trying everything."""

import math
from collections.abc import Callable
from itertools import accumulate, product

import pytest
from hypothesis import given
from hypothesis import strategies as st

from samestep.errors import PlanRefused
from samestep.planner.search.greedy_shares import greedy_shares

steps = st.lists(st.integers(0, 5).map(float), min_size=7, max_size=7)


def curve(increments: list[float]) -> Callable[[int], float]:
    ends = [0.0, *accumulate(increments)]
    return lambda count: ends[count]


@given(st.integers(0, 6), st.lists(steps.map(curve), min_size=1, max_size=4))
def test_no_dealing_ends_earlier(num_shards: int, finishing: list[Callable[[int], float]]) -> None:
    def end(counts: tuple[int, ...]) -> float:
        return max(finish(count) for finish, count in zip(finishing, counts, strict=True) if count or not num_shards)

    dealt = greedy_shares(num_shards, finishing)
    every = product(range(num_shards + 1), repeat=len(finishing))
    assert sum(dealt) == num_shards
    assert end(dealt) == min(end(counts) for counts in every if sum(counts) == num_shards)


def test_the_lower_rank_wins_a_tie() -> None:
    assert greedy_shares(5, [float] * 3) == (2, 2, 1)
    assert greedy_shares(6, [lambda n: n * 1.0, lambda n: n * 2.0]) == (4, 2)


def test_what_no_worker_can_take_is_refused() -> None:
    with pytest.raises(PlanRefused, match="can take 2 shards, the step has 3"):
        greedy_shares(3, [lambda n: n if n <= 1 else math.inf] * 2)
    with pytest.raises(PlanRefused, match="a worker"):
        greedy_shares(3, [])
