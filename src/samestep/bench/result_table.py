"""A verdict as text: a table, what it says, and bars."""

from collections.abc import Sequence

from samestep.bench.comparison_result import ComparisonResult, Line, Regret
from samestep.bench.intervals import LEVEL, Interval
from samestep.plan.prediction import in_ms

BAR = 40  # characters of the longest bar
HEAD = ("contestant", "step, ms", f"{LEVEL:.0%} interval", "to the best", "predicted, ms", "error")


def text_of(verdict: ComparisonResult) -> str:
    return "\n".join([*table(verdict.lines), "", *said(verdict), "", *bars(verdict.lines)])


def table(lines: Sequence[Line]) -> list[str]:
    measured = [line for line in lines if line.seconds is not None]
    rows = [HEAD, *(cells(line) for line in measured)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(HEAD))]
    aligned = [
        "  ".join(
            cell.ljust(width) if column == 0 else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        for row in rows
    ]
    noted = [""] + [f"  {line.reason}" if line.reason else "" for line in measured]
    left = [f"{line.name}: {line.reason}" for line in lines if line.seconds is None]
    return [(row + note).rstrip() for row, note in zip(aligned, noted, strict=True)] + left


def cells(line: Line) -> tuple[str, ...]:
    assert line.seconds is not None
    assert line.to_best is not None
    predicted = "-" if line.predicted is None else in_ms(line.predicted)
    error = "-" if line.error is None else f"{line.error:+.1%}"
    best = f"{line.to_best.value:.3f}" + (" tie" if line.is_tie and line.to_best.value != 1 else "    ")
    return line.name, in_ms(line.seconds.value), spread(line.seconds), best, predicted, error


def spread(interval: Interval) -> str:
    return f"{in_ms(interval.low)} to {in_ms(interval.high)}"


def said(verdict: ComparisonResult) -> list[str]:
    lines = []
    if verdict.again is not None:
        again = verdict.again
        lines.append(
            f"{verdict.rounds} rounds. {verdict.reference} against itself: {again.value:.3f} "
            f"({again.low:.3f} to {again.high:.3f}), so that {verdict.noise:.1%} is noise"
        )
    for regret, among in ((verdict.among_plans, "our plans of the same numerics"), (verdict.among_all, "all")):
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
    """As long as the step, the interval's upper half in dots."""
    measured = [line for line in lines if line.seconds is not None]
    longest = max((line.seconds.high for line in measured if line.seconds), default=1.0)
    width = max((len(line.name) for line in measured), default=0)
    return [f"{line.name:{width}}  {bar(line.seconds, longest)}" for line in measured if line.seconds]


def bar(seconds: Interval, longest: float) -> str:
    full, end = (round(BAR * value / longest) for value in (seconds.value, seconds.high))
    return "█" * full + "·" * (end - full) + f" {in_ms(seconds.value)} ms"
