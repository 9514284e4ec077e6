"""A verdict as an SVG: a bar per contestant, its interval as a whisker, its prediction as a mark."""

from collections.abc import Iterator, Sequence
from html import escape

from samestep.bench.comparison_result import ComparisonResult, Line
from samestep.plan.prediction import in_ms

LEFT, WIDTH, ROW, TOP, RIGHT = 190, 460, 28, 60, 90  # pixels: names, the longest bar, a contestant, above, times
OURS, OTHERS = "#2f6db5", "#b9c1cb"


def svg_of(verdict: ComparisonResult, title: str) -> str:
    lines = [line for line in verdict.lines if line.seconds is not None]
    longest = max((end for line in lines for end in ends(line)), default=1.0)
    width, height = LEFT + WIDTH + RIGHT, TOP + ROW * len(lines) + 34
    summary = "; ".join(f"{line.name} {in_ms(line.seconds.value)} ms" for line in lines if line.seconds)
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" role="img" aria-labelledby="title summary" width="{width}" '
            f'height="{height}" viewBox="0 0 {width} {height}" font-family="system-ui, sans-serif" font-size="12">',
            f'<title id="title">{escape(title)}</title>',
            f'<desc id="summary">{escape(summary)}</desc>',
            f'<rect width="{width}" height="{height}" fill="#ffffff"/>',
            f'<text x="16" y="26" font-size="15" font-weight="600" fill="#1a1a1a">{escape(title)}</text>',
            f'<text x="16" y="44" fill="#555555">median of {verdict.rounds} rounds, 90 % interval; blue: samestep; '
            "diamond: predicted</text>",
            *(part for number, line in enumerate(lines) for part in row(line, TOP + ROW * number, WIDTH / longest)),
            f'<text x="16" y="{height - 12}" fill="#555555">noise of the reference against itself: '
            f"{verdict.noise:.1%}</text>",
            "</svg>",
        ]
    )


def ends(line: Line) -> Sequence[float]:
    assert line.seconds is not None
    return [line.seconds.high, *([] if line.predicted is None else [line.predicted])]


def row(line: Line, y: float, scale: float) -> Iterator[str]:
    """scale: pixels per second."""
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
