"""The result of a comparison as text: a table, conclusions, and bars."""

from collections.abc import Sequence

from samestep.bench.comparison import ComparisonResult, Line, Regret
from samestep.bench.figures import aligned
from samestep.bench.intervals import LEVEL, Interval
from samestep.plan.prediction import in_ms

BAR = 40  # characters of the longest bar
HEAD = ("contestant", "step, ms", f"{LEVEL:.0%} interval", "to the best", "predicted, ms", "error")


def comparison_table(result: ComparisonResult) -> str:
    return "\n".join([*rows_of(result.lines), "", *conclusions(result), "", *bars(result.lines)])


def rows_of(lines: Sequence[Line]) -> list[str]:
    """A row per measured contestant, with its note; then why the others were not measured."""
    measured = [line for line in lines if line.seconds is not None]
    noted = [""] + [f"  {line.reason}" if line.reason else "" for line in measured]
    rows = aligned([HEAD, *(cells(line) for line in measured)])
    left = [f"{line.name}: {line.reason}" for line in lines if line.seconds is None]
    return [(row + note).rstrip() for row, note in zip(rows, noted, strict=True)] + left


def cells(line: Line) -> tuple[str, ...]:
    assert line.seconds is not None
    assert line.to_best is not None
    predicted = "-" if line.predicted is None else in_ms(line.predicted)
    error = "-" if line.error is None else f"{line.error:+.1%}"
    best = f"{line.to_best.value:.3f}" + (" tie" if line.is_tie and line.to_best.value != 1 else "    ")
    interval = f"{in_ms(line.seconds.low)} to {in_ms(line.seconds.high)}"
    return line.name, in_ms(line.seconds.value), interval, best, predicted, error


def conclusions(result: ComparisonResult) -> list[str]:
    lines = []
    if result.again is not None:
        again = result.again
        lines.append(
            f"{result.rounds} rounds. {result.reference} against itself: {again.value:.3f} "
            f"({again.low:.3f} to {again.high:.3f}), so that {result.noise:.1%} is noise"
        )
    for regret, among in ((result.among_plans, "our plans of the same numerics"), (result.among_all, "all")):
        if regret is not None:
            lines.append(f"regret of our pick, {regret.pick}, among {among}: {cost(regret)}")
    return lines


def cost(regret: Regret) -> str:
    if regret.pick == regret.best:
        return "0.0 %, it is the best"
    tie = ", a tie" if regret.is_tie else ""
    low, high = regret.ratio.low - 1, regret.ratio.high - 1
    return f"{regret.share * 100:.1f} % ({low * 100:.1f} to {high * 100:.1f}) against {regret.best}{tie}"


def bars(lines: Sequence[Line]) -> list[str]:
    """A bar per contestant as long as its step, with the upper half of the interval in dots."""
    measured = [line for line in lines if line.seconds is not None]
    longest = max((line.seconds.high for line in measured if line.seconds), default=1.0)
    width = max((len(line.name) for line in measured), default=0)
    return [f"{line.name:{width}}  {bar(line.seconds, longest)}" for line in measured if line.seconds]


def bar(seconds: Interval, longest: float) -> str:
    full, end = (round(BAR * value / longest) for value in (seconds.value, seconds.high))
    return "█" * full + "·" * (end - full) + f" {in_ms(seconds.value)} ms"
