"""The selection of cases that `make test` runs holds every pair."""

from itertools import combinations, product

from hypothesis import given
from hypothesis import strategies as st

from pairwise import covering, crossed, in_turn


def pairs(cases: list[tuple[int, ...]]) -> set[object]:
    return {pair for case in cases for pair in combinations(enumerate(case), 2)}


@given(st.lists(st.integers(1, 4), min_size=2, max_size=4))
def test_every_pair_of_values_is_in_a_chosen_case(sizes: list[int]) -> None:
    cases = list(product(*map(range, sizes)))
    chosen = covering(cases, lambda case: case)
    assert pairs(chosen) == pairs(cases)
    assert chosen == covering(cases, lambda case: case)
    largest = sorted(sizes)[-2:]
    assert largest[0] * largest[1] <= len(chosen) <= len(cases)


def test_a_selection_is_much_smaller_than_the_product() -> None:
    cases = list(product(range(4), repeat=5))
    assert len(covering(cases, lambda case: case)) <= 32  # of 1024


def test_only_what_is_possible_is_asked_for() -> None:
    """Pairs that no case has need none."""
    assert covering([(0, 0), (1, 1)], lambda case: case) == [(0, 0), (1, 1)]


def test_traits_may_be_coarser_than_cases() -> None:
    cases = list(range(10))
    assert covering(cases, lambda case: (case % 2, "one")) == [0, 1]


def test_what_is_left_is_marked_slow_and_nothing_is_lost() -> None:
    found = crossed("ab", range(3), range(3), whole=lambda name, *_: name == "a")
    assert [param.values for param in found] == list(product("ab", range(3), range(3)))
    kept = [param.values for param in found if not param.marks]
    assert sum(name == "a" for name, *_ in kept) == 9
    assert sum(name == "b" for name, *_ in kept) == 9
    coarse = crossed("ab", range(3), range(3), traits=lambda name, x, y: (name, x))
    assert sum(not param.marks for param in coarse) == 6


def test_in_turn_every_value_is_used_and_every_name() -> None:
    kept = [param.values for param in in_turn("abcd", [1, 2, 3], whole="d") if not param.marks]
    assert kept == [("a", 1), ("b", 2), ("c", 3), ("d", 1), ("d", 2), ("d", 3)]
