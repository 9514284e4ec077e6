"""A comparison from its contestants to its verdict."""

from collections.abc import Callable, Sequence

from samestep.bench.comparison_result import ComparisonResult, verdict_of
from samestep.bench.contenders.contender_process import Contender
from samestep.bench.contestants import (
    AGAIN,
    Contestant,
    maker,
    pick_of,
)
from samestep.bench.rounds import Say, TimeBudget, race
from samestep.launch.request.request import Request


def compare(
    contestants: Sequence[Contestant], request: Request, pace: TimeBudget, *, warm_heap: bool = False, say: Say
) -> ComparisonResult:
    """Measure them in rounds, our pick twice (the first contestant, where none is ours)."""
    pick = pick_of(contestants)
    reference = contestants[0] if pick is None else pick
    makers: dict[str, Callable[[], Contender]] = {
        one.name: maker(one, request, warm_heap=warm_heap) for one in contestants
    }
    makers[reference.name + AGAIN] = makers[reference.name]
    found = race(makers, pace, say)
    return verdict_of(contestants, found, reference.name, pick)
