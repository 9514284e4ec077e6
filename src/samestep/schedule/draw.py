"""Drawings of a step as text or SVG: the schedules that are run, simulated.

    worker 0   F0 F1 .  .  B0 B0 B1 B1         F forward, B backward, R recomputation, of a shard
    worker 1   .  F0 B0 B0 F1 B1 B1 .          F1.0 where workers hold several stages: stage 1, shard 0

W where a backward is split in two: B for the input's gradient, W for the weights'.

A cell of the text is one unit of time. The end of the step takes no time here.
"""

from collections.abc import Callable, Iterator, Sequence
from colorsys import hls_to_rgb
from dataclasses import dataclass
from html import escape
from math import ceil

from samestep.schedule import actions
from samestep.schedule.actions import Action, Schedule
from samestep.schedule.grid import Grid
from samestep.schedule.places import places
from samestep.schedule.simulator import Simulation, simulate

COMPUTING = (
    actions.Forward,
    actions.Backward,
    actions.BackwardWeight,
    actions.Recompute,
    actions.SliceForward,
    actions.SliceBackward,
    actions.Lockstep,
)

UNIT, ROW, LEFT, TOP, GAP = 30, 30, 84, 40, 4  # pixels: a unit of time, a worker, margins, between workers

LIGHTNESS = {"B": 0.28, "FB": 0.28, "W": 0.91}
GREYS = {"C": "#8a8a8a", "U": "#5c5c5c", "O": "#c9c9c9"}  # time that is no computing, in drawings of measured costs
LEGEND = (("F", "forward"), ("B", "backward"), ("W", "weight gradient"), ("R", "recomputation"))
REST = (("C", "communication"), ("U", "update"), ("O", "overhead"))


@dataclass(frozen=True)
class Times:
    """Durations in units: a shard through a dense segment, a set through a sliced one, a message."""

    forward: float = 1
    backward: float = 2
    latency: float = 0
    weight: float = 1  # the part of a dense backward that may be deferred

    def of(self, action: Action, split: bool = False) -> float:
        """Duration of an action. split: in a stage that splits its backwards."""
        if isinstance(action, actions.Forward | actions.Recompute | actions.SliceForward):
            return self.forward
        if isinstance(action, actions.Backward | actions.SliceBackward):
            return self.backward - self.weight if split and isinstance(action, actions.Backward) else self.backward
        if isinstance(action, actions.BackwardWeight):
            return self.weight
        return len(action.shards) * (self.forward + self.backward) if isinstance(action, actions.Lockstep) else 0


@dataclass(frozen=True)
class Clock:
    """Conversion of a drawing's units to those shown in words."""

    per_unit: float = 1.0
    words: str = "units of time"

    def of(self, units: float) -> str:
        return f"{units * self.per_unit:.4g}"


@dataclass(frozen=True)
class Bar:
    """An interval in which a worker computes, or spends time otherwise."""

    worker: int
    kind: str  # F, B, W, R; FB where shards go in lockstep; C, U, O of REST
    stage: int
    shards: str
    start: float
    stop: float


def scheduled_bars(grid: Grid, schedules: Sequence[Schedule], times: Times = Times()) -> tuple[Bar, ...]:
    """Bars of all workers' computing, each action starting as soon as its inputs are there."""
    stage_of = places(grid).stage_of
    split = {segment for segment, stage in enumerate(stage_of) if grid.stages[stage].split}

    def cost(_: int, action: Action) -> float:
        return times.of(action, getattr(action, "segment", -1) in split)

    return simulated_bars(grid, schedules, simulate(grid, schedules, cost=cost, latency=times.latency))


def simulated_bars(grid: Grid, schedules: Sequence[Schedule], outcome: Simulation) -> tuple[Bar, ...]:
    """Bars of the computing in a simulation."""
    stage_of = places(grid).stage_of
    return tuple(
        Bar(
            rank, bar_kind(action), stage_of[getattr(action, "segment", 0)], shards_label(action), span.start, span.stop
        )
        for rank, schedule in enumerate(schedules)
        for action, span in zip(
            schedule, outcome.spans[rank], strict=False
        )  # a deadlocked step is drawn as far as it came
        if isinstance(action, COMPUTING)
    )


def bar_kind(action: Action) -> str:
    kinds = {actions.Lockstep: "FB", actions.Recompute: "R", actions.BackwardWeight: "W"}
    return "F" if isinstance(action, actions.Forward | actions.SliceForward) else kinds.get(type(action), "B")


def shards_label(action: Action) -> str:
    if not isinstance(action, actions.SliceForward | actions.SliceBackward | actions.Lockstep):
        return str(getattr(action, "shard", ""))
    first, last = action.shards[0], action.shards[-1]
    return str(first) if first == last else f"{first}-{last}"


def total_length(bars: Sequence[Bar]) -> float:
    """Units of time until the last bar ends."""
    return max((bar.stop for bar in bars), default=0)


def labels_of(grid: Grid) -> Callable[[Bar], str]:
    """Labels of bars: with the stage where some worker holds several."""
    several = any(sum(rank in stage.workers for stage in grid.stages) > 1 for rank in range(grid.num_workers))
    return lambda bar: f"{bar.kind}{bar.stage}.{bar.shards}" if several and bar.shards else f"{bar.kind}{bar.shards}"


def schedule_text(grid: Grid, schedules: Sequence[Schedule], times: Times = Times()) -> str:
    """The staircase: a row per worker, a cell per unit of time."""
    return staircase(grid, scheduled_bars(grid, schedules, times), len(schedules))


def staircase(grid: Grid, bars: Sequence[Bar], workers: int) -> str:
    label = labels_of(grid)
    width = max((len(label(bar)) for bar in bars), default=1)
    rows = [["."] * ceil(total_length(bars)) for _ in range(workers)]
    for bar in bars:
        for column in range(ceil(bar.start), ceil(bar.stop)):
            rows[bar.worker][column] = label(bar)
    names = [f"worker {rank}" for rank in range(workers)]
    edge = max(map(len, names))
    return "\n".join(
        f"{name:{edge}}   {' '.join(cell.ljust(width) for cell in row)}".rstrip()
        for name, row in zip(names, rows, strict=True)
    )


def schedule_svg(
    grid: Grid, schedules: Sequence[Schedule], times: Times = Times(), title: str = "Schedule of a step"
) -> str:
    """The drawing as SVG: a colour per stage, dark for backwards, pale for their W, hatched for recomputations."""
    return picture(grid, scheduled_bars(grid, schedules, times), len(schedules), title)


def picture(grid: Grid, bars: Sequence[Bar], workers: int, title: str, clock: Clock = Clock()) -> str:
    right = LEFT + UNIT * ceil(total_length(bars))
    legend_top = TOP + ROW * workers + 12
    kinds = {bar.kind for bar in bars}
    entries = [entry for entry in legend_entries(len(grid.stages)) if entry[0] in kinds or entry[0] == "F"]
    per_line = max(1, (max(right, 480) - LEFT) // 150)
    height = legend_top + 22 * ceil(len(entries) / per_line) + 10
    width = max(right, 480) + 16
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" role="img" aria-labelledby="title summary" '
            f'width="{width}" height="{height}" viewBox="0 0 {width} {height}" '
            'font-family="system-ui, sans-serif" font-size="11">',
            f'<title id="title">{escape(title)}</title>',
            f'<desc id="summary">{escape(picture_summary(grid, bars, workers, clock))}</desc>',
            '<defs><pattern id="hatch" width="5" height="5" patternUnits="userSpaceOnUse" '
            'patternTransform="rotate(45)"><path d="M0 0V5" stroke="#ffffff" stroke-width="3"/></pattern></defs>',
            f'<rect width="{width}" height="{height}" fill="#ffffff"/>',
            f'<text x="{LEFT}" y="22" font-size="14" font-weight="600" fill="#1a1a1a">{escape(title)}</text>',
            *worker_rows(workers, right),
            *(line for bar in bars for line in box(grid, bar, clock)),
            *legend_lines(grid, entries, per_line, legend_top),
            "</svg>",
        ]
    )


def picture_summary(grid: Grid, bars: Sequence[Bar], workers: int, clock: Clock) -> str:
    """The drawing in one sentence, for screen readers."""
    length = total_length(bars)
    busy = sum(bar.stop - bar.start for bar in bars)
    idle = 1 - busy / (length * workers) if length else 0
    return (
        f"{grid.num_shards} shards through {len(grid.stages)} stages on {workers} workers take "
        f"{clock.of(length)} {clock.words}; {idle:.0%} of it workers are idle."
    )


def worker_rows(workers: int, right: int) -> Iterator[str]:
    for rank in range(workers):
        y = TOP + ROW * rank
        yield f'<rect x="{LEFT}" y="{y}" width="{right - LEFT}" height="{ROW - GAP}" fill="#f1f1f1"/>'
        yield f'<text x="{LEFT - 10}" y="{y + 17}" text-anchor="end" fill="#1a1a1a">worker {rank}</text>'


def box(grid: Grid, bar: Bar, clock: Clock) -> Iterator[str]:
    """A bar with its label, and with a title for the pointer."""
    x, y, width = LEFT + UNIT * bar.start, TOP + ROW * bar.worker, UNIT * (bar.stop - bar.start)
    what = (
        f"{bar.kind} of shard {bar.shards} at stage {bar.stage}" if bar.shards else dict(REST).get(bar.kind, bar.kind)
    )
    words = f"worker {bar.worker}: {what}, {clock.of(bar.start)} to {clock.of(bar.stop)}"
    label = labels_of(grid)(bar)
    yield f"<g><title>{words}</title>"
    yield from filled_rect(grid, bar.kind, bar.stage, x, y, width, ROW - GAP)
    if len(label) * 6.5 <= width:
        yield (f'<text x="{x + width / 2:g}" y="{y + 17}" text-anchor="middle" fill="{ink(bar.kind)}">{label}</text>')
    yield "</g>"


def filled_rect(grid: Grid, kind: str, stage: int, x: float, y: float, width: float, height: float) -> Iterator[str]:
    place = f'x="{x:g}" y="{y:g}" width="{width:g}" height="{height:g}"'
    yield (
        f'<rect {place} fill="{colour(stage, len(grid.stages), kind)}" stroke="#ffffff" shape-rendering="crispEdges"/>'
    )
    if kind == "R":
        yield f'<rect {place} fill="url(#hatch)" fill-opacity="0.6"/>'


def legend_entries(num_stages: int) -> Iterator[tuple[str, int, str]]:
    for kind, words in LEGEND:
        yield from ((kind, stage, f"{words}, stage {stage}") for stage in range(num_stages))
    yield from ((kind, 0, words) for kind, words in REST)


def legend_lines(grid: Grid, entries: Sequence[tuple[str, int, str]], per_line: int, top: int) -> Iterator[str]:
    for number, (kind, stage, words) in enumerate(entries):
        x, y = LEFT + 150 * (number % per_line), top + 22 * (number // per_line)
        yield from filled_rect(grid, kind, stage, x, y, 14, 14)
        yield f'<text x="{x + 20:g}" y="{y + 11:g}" fill="#1a1a1a">{words}</text>'


def colour(stage: int, num_stages: int, kind: str) -> str:
    """A hue per stage, well apart; light enough for dark ink, or dark enough for white."""
    if kind in GREYS:
        return GREYS[kind]
    red, green, blue = hls_to_rgb(0.58 + stage / num_stages, LIGHTNESS.get(kind, 0.78), 0.62)
    return f"#{round(255 * red):02x}{round(255 * green):02x}{round(255 * blue):02x}"


def ink(kind: str) -> str:
    return "#ffffff" if kind in ("B", "FB", "C", "U") else "#1a1a1a"
