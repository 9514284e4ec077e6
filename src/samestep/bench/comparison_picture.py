"""The result of a comparison as an SVG: a bar per contestant, its interval as a whisker, its prediction as a mark."""

from collections.abc import Iterator, Sequence
from html import escape

from samestep.bench.comparison import ComparisonResult, Line
from samestep.bench.figures import svg_page
from samestep.plan.prediction import in_ms

LEFT, WIDTH, ROW, TOP, RIGHT = 190, 460, 28, 60, 90  # pixels: names, the longest bar, a contestant, above, times
OURS, OTHERS = "#2f6db5", "#b9c1cb"


def comparison_picture(result: ComparisonResult, title: str) -> str:
    lines = [line for line in result.lines if line.seconds is not None]
    longest = max((end for line in lines for end in ends(line)), default=1.0)
    width, height = LEFT + WIDTH + RIGHT, TOP + ROW * len(lines) + 34
    summary = "; ".join(f"{line.name} {in_ms(line.seconds.value)} ms" for line in lines if line.seconds)
    subtitle = f"median of {result.rounds} rounds, 90 % interval; blue: samestep; diamond: predicted"
    parts = [part for number, line in enumerate(lines) for part in row(line, TOP + ROW * number, WIDTH / longest)]
    noise = f"noise of the reference against itself: {result.noise:.1%}"
    parts.append(f'<text x="16" y="{height - 12}" fill="#555555">{noise}</text>')
    return svg_page(width, height, title, summary, subtitle, parts)


def ends(line: Line) -> Sequence[float]:
    """Right ends of the whisker and of the mark, in seconds."""
    assert line.seconds is not None
    return [line.seconds.high, *([] if line.predicted is None else [line.predicted])]


def row(line: Line, y: float, scale: float) -> Iterator[str]:
    """Bar, whisker and mark of a contestant. scale: pixels per second."""
    assert line.seconds is not None
    middle = y + ROW / 2
    low, value, high = (LEFT + scale * x for x in (line.seconds.low, line.seconds.value, line.seconds.high))
    colour = OURS if line.name.startswith("samestep") else OTHERS
    yield f'<text x="{LEFT - 10}" y="{middle + 4:.1f}" text-anchor="end" fill="#1a1a1a">{escape(line.name)}</text>'
    yield f'<rect x="{LEFT}" y="{y + 5:.1f}" width="{value - LEFT:.1f}" height="{ROW - 10}" fill="{colour}"/>'
    yield (
        f'<path d="M{low:.1f} {middle:.1f}H{high:.1f}M{low:.1f} {middle - 4:.1f}v8M{high:.1f} {middle - 4:.1f}v8" '
        'stroke="#1a1a1a" fill="none"/>'
    )
    if line.predicted is not None:
        x = LEFT + scale * line.predicted
        yield f'<path d="M{x:.1f} {middle - 6:.1f}l5 6l-5 6l-5 -6z" fill="#d1601d"/>'
    edge = LEFT + scale * max(ends(line)) + 8
    yield f'<text x="{edge:.1f}" y="{middle + 4:.1f}" fill="#1a1a1a">{in_ms(line.seconds.value)} ms</text>'
