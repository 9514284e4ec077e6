"""Covering arrays: few cases that show every pair of values together.

Most faults need one value or two that meet, hardly ever three. So one small model runs through every combination,
and the others through as many as hold each pair of values at least once. `make test-all` runs them all.

    whole product of 3 x 2 x 2 = 12 cases       covering array: 6, each pair of any two columns is in a row
"""

from collections.abc import Callable, Collection, Hashable, Iterable, Sequence
from itertools import combinations, product
from typing import Any, TypeVar

import pytest

Case = TypeVar("Case")


def covering(cases: Sequence[Case], traits: Callable[[Case], Sequence[Hashable]]) -> list[Case]:
    """A small selection of the cases, in their order, that has every pair of traits that any of them has.

    traits: as many for each case; pairs of the same two positions are compared. Greedy, and the same at each call:
    the next case is the first of those with most pairs that are missing yet.
    """
    pairs = [set(combinations(enumerate(traits(case)), 2)) for case in cases]
    missing: set[Any] = set().union(*pairs)
    chosen = set()
    while missing:
        best = max(range(len(cases)), key=lambda number: (len(pairs[number] & missing), -number))
        chosen.add(best)
        missing -= pairs[best]
    return [case for number, case in enumerate(cases) if number in chosen]


def crossed(
    *axes: Iterable[Any],
    whole: Callable[..., bool] = lambda *case: False,
    traits: Callable[..., Sequence[Hashable]] = lambda *case: [str(value) for value in case],
) -> list[Any]:
    """Parameters for `pytest.mark.parametrize`: the whole product of the axes, with `slow` at what `make test` leaves.

    whole: cases that `make test` runs all. traits: what of a case should meet in pairs, if not the values themselves.
    """
    cases = list(product(*axes))
    kept = [case for case in cases if whole(*case)]
    kept += covering([case for case in cases if not whole(*case)], lambda case: traits(*case))
    return [pytest.param(*case, marks=[] if case in kept else [pytest.mark.slow]) for case in cases]


def in_turn(names: Iterable[Any], values: Sequence[Any], whole: Any = None) -> list[Any]:
    """Parameters for `pytest.mark.parametrize`: `make test` runs each name with one of the values, the next for the
    next; `whole` with all of them."""
    return [
        pytest.param(name, value, marks=[] if name == whole or at == number % len(values) else [pytest.mark.slow])
        for number, name in enumerate(names)
        for at, value in enumerate(values)
    ]


def only(kept: Collection[Any], values: Iterable[Any]) -> list[Any]:
    """Parameters for `pytest.mark.parametrize`: all the values, with `slow` at those that are not kept."""
    found = list(values)
    assert set(kept) <= set(found)
    return [pytest.param(value, marks=[] if value in kept else [pytest.mark.slow]) for value in found]
