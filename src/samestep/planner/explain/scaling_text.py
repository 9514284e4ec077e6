"""Scaling as a table, as a plot of text, and as a picture."""

from collections.abc import Iterator, Sequence
from html import escape
from math import log2

from samestep.plan.prediction import PARTS, in_ms
from samestep.planner.search.scaling_curve import Point, Scaling

HEIGHT, COLUMN = 10, 7  # of the plot: lines, characters per number of workers
WIDTH, TALL, LEFT, TOP = 640, 320, 64, 40  # pixels: the picture's inside and its margins
LONGEST = 44  # characters of a plan's name in the table


def text(found: Scaling) -> str:
    """The table, the plot and the advice that `samestep simulate` prints."""
    lines = [
        f"{found.units} units, batch of {found.batch_size} rows in {found.shards} shards; costs {found.costs}; "
        f"cluster {found.cluster}",
        "",
        *scaling_table(found.points),
        "",
        *plot(found.points),
    ]
    return "\n".join([*lines, *shards_advice(found)])


def scaling_table(points: Sequence[Point]) -> Iterator[str]:
    yield "workers   ms/step    rows/s  efficiency  plan; of a step"
    for p in points:
        used = f" on {p.used}" if p.used < p.workers else ""
        shares = [f"{name} {p.parts[name] / p.seconds:.0%}" for name in PARTS if p.parts[name] >= 0.01 * p.seconds]
        yield (
            f"{p.workers:>7}  {in_ms(p.seconds):>8}  {p.rows_per_second:>8.4g}  {p.efficiency:>9.1%}  "
            f"{short(p.plan)}{used}; {', '.join(shares)}"
        )


def short(name: str) -> str:
    return name if len(name) <= LONGEST else f"{name[: LONGEST - 3]}..."


def plot(points: Sequence[Point]) -> Iterator[str]:
    """Efficiency over workers, one column for each number of workers."""
    for line in range(HEIGHT, -1, -1):
        marks = (("o" if round(min(p.efficiency, 1.0) * HEIGHT) == line else "").center(COLUMN) for p in points)
        yield f"{line / HEIGHT:>5.0%} |{''.join(marks)}".rstrip()
    yield "      +" + "-" * (COLUMN * len(points))
    yield "       " + "".join(f"{p.workers}".center(COLUMN) for p in points).rstrip()


def shards_advice(found: Scaling) -> Iterator[str]:
    """Advice when there are more workers than shards."""
    most = max(p.workers for p in found.points)
    if most > found.shards:
        yield ""
        yield (
            f"{found.shards} shards feed at most {found.shards} workers by data parallelism; more are of use to stages "
            f"and slices only. --shards {most} would feed {most}: S is part of the numbers, another S gives other bits"
        )


def svg(found: Scaling) -> str:
    """Rows per second over workers, both on logarithmic axes, beside the straight line of perfect scaling."""
    points = found.points
    ideal = [points[0].rows_per_second * p.workers / points[0].workers for p in points]
    rates = [p.rows_per_second for p in points]
    low, high = log2(min(rates)), log2(max(*ideal, *rates))
    first, last = log2(points[0].workers), log2(points[-1].workers)

    def x(p: Point) -> float:
        return LEFT + (log2(p.workers) - first) / (last - first or 1.0) * WIDTH

    def y(rate: float) -> float:
        return TOP + TALL - (log2(rate) - low) / (high - low or 1.0) * TALL

    body = [
        line([(x(p), y(rate)) for p, rate in zip(points, ideal, strict=True)], "#999", ' stroke-dasharray="4 4"'),
        line([(x(p), y(p.rows_per_second)) for p in points], "#1f5fa8"),
    ]
    for p in points:
        at, up = x(p), y(p.rows_per_second)
        title = f"{p.workers} workers: {in_ms(p.seconds)} ms, {p.efficiency:.0%}, {p.plan}"
        body.append(f'<circle cx="{at:.1f}" cy="{up:.1f}" r="4" fill="#1f5fa8"><title>{escape(title)}</title></circle>')
        body.append(f'<text x="{at:.1f}" y="{TOP + TALL + 20}" text-anchor="middle">{p.workers}</text>')
        body.append(f'<text x="{at:.1f}" y="{up - 8:.1f}" text-anchor="middle">{p.rows_per_second:.3g}</text>')
    head = f"predicted rows per second over workers; S={found.shards}, costs {found.costs}, cluster {found.cluster}"
    body.append(f'<text x="{LEFT}" y="20">{escape(head)}</text>')
    size = f'width="{WIDTH + 2 * LEFT}" height="{TALL + 2 * TOP}"'
    style = 'font-family="sans-serif" font-size="11"'
    return f'<svg xmlns="http://www.w3.org/2000/svg" {size} {style}>\n' + "\n".join(body) + "\n</svg>\n"


def line(points: Sequence[tuple[float, float]], color: str, more: str = "") -> str:
    along = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
    return f'<polyline points="{along}" fill="none" stroke="{color}"{more}/>'
