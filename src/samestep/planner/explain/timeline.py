"""Timeline of the predicted step, drawn to scale: computing by stage and shard, and everything else in grey."""

from dataclasses import replace

from samestep.plan.prediction import in_ms
from samestep.planner.cost.estimate import KIND_OF_TIME, Estimate
from samestep.schedule.draw import Bar, Clock, labels_of, picture, simulated_bars, staircase

LETTERS = {"communication": "C", "update": "U", "overhead": "O"}
CELLS = 100  # characters of a worker's line
UNITS = 28  # of a picture's width
THIN = 0.002  # of the step: shorter bars are not drawn


def timeline_bars(found: Estimate) -> list[Bar]:
    """Bars of all workers, in seconds."""
    rest = [
        Bar(rank, LETTERS[kind], 0, "", span.start, span.stop)
        for rank, (schedule, spans) in enumerate(zip(found.schedules, found.outcome.spans, strict=True))
        for action, span in zip(schedule, spans, strict=True)
        if (kind := KIND_OF_TIME.get(type(action), "overhead")) in LETTERS
    ]
    every = [*simulated_bars(found.grid, found.schedules, found.outcome), *rest]
    end = max(bar.stop for bar in every)
    return [bar for bar in every if bar.stop - bar.start > THIN * end]


def scaled(bars: list[Bar], units: int) -> tuple[list[Bar], float]:
    """Bars scaled so that the last ends at `units`, and the seconds of a unit."""
    second = units / max(bar.stop for bar in bars)
    return [replace(bar, start=bar.start * second, stop=bar.stop * second) for bar in bars], 1 / second


def timeline_text(found: Estimate) -> str:
    """The timeline as text: the staircase of `schedule.draw` with cells of equal duration."""
    bars, label = timeline_bars(found), labels_of(found.grid)
    width = max(len(label(bar)) for bar in bars) + 1
    cells, seconds = scaled(bars, max(8, CELLS // width))
    kinds = "F forward, B backward, W weight gradient, R recomputation, C communication, U update, O overhead"
    lines = staircase(found.grid, cells, len(found.schedules))
    return f"{lines}\na column is {in_ms(seconds)} ms; {kinds}"


def timeline_svg(found: Estimate, title: str) -> str:
    """The timeline as SVG."""
    bars, seconds = scaled(timeline_bars(found), UNITS)
    return picture(found.grid, bars, len(found.schedules), title, Clock(seconds * 1e3, "ms"))
