"""Loss over time under every sync policy, as an SVG: the first curve to reach the dashed line wins."""

from collections.abc import Iterator
from html import escape

from samestep.bench.figures import svg_page
from samestep.bench.policy_comparison import Course, PolicyComparison

LEFT, TOP, WIDTH, HEIGHT, RIGHT, BELOW = 64, 64, 560, 300, 210, 48  # pixels: axis, title, plot, legend, axis
COLOURS = ("#1a1a1a", "#2f6db5", "#d1601d", "#3c8d40", "#8a4fa3", "#b8860b", "#5c5c5c")
POINTS = 300  # of a curve, at most


def policies_picture(comparison: PolicyComparison, title: str) -> str:
    run = [course for course in comparison.courses if course.losses]
    curves = [curve_of(course, comparison.window) for course in run]
    longest = max(x for curve in curves for x, _ in curve)
    losses = [y for curve in curves for _, y in curve if y == y] + [comparison.target]  # a NaN has no place
    low, high = min(losses), max(losses)
    high += (high - low or 1.0) * 0.05
    low -= (high - low) * 0.05

    def place(x: float, y: float) -> tuple[float, float]:
        return LEFT + WIDTH * x / longest, TOP + HEIGHT * (high - y) / (high - low)

    width, height = LEFT + WIDTH + RIGHT, TOP + HEIGHT + BELOW
    summary = "; ".join(f"{course.policy} {curve[-1][1]:.4f}" for course, curve in zip(run, curves, strict=True))
    subtitle = (
        f"mean loss of the last {comparison.window} steps over seconds of training; dashed: the target, "
        f"{comparison.target:.4f}"
    )
    parts = [f'<path d="M{LEFT} {TOP}V{TOP + HEIGHT}H{LEFT + WIDTH}" stroke="#8a8a8a" fill="none"/>']
    for i in range(5):
        x, y = longest * i / 4, low + (high - low) * i / 4
        across, down = place(x, y)
        parts.append(f'<text x="{LEFT - 8}" y="{down + 4:.1f}" text-anchor="end" fill="#555555">{y:.3g}</text>')
        parts.append(
            f'<text x="{across:.1f}" y="{TOP + HEIGHT + 18}" text-anchor="middle" fill="#555555">{x:.3g} s</text>'
        )
    _, goal = place(0, comparison.target)
    parts.append(f'<path d="M{LEFT} {goal:.1f}h{WIDTH}" stroke="#8a8a8a" stroke-dasharray="5 4" fill="none"/>')
    for number, (course, curve) in enumerate(zip(run, curves, strict=True)):
        colour = COLOURS[number % len(COLOURS)]
        points = " ".join(f"{x:.1f},{y:.1f}" for x, y in (place(*point) for point in curve if point[1] == point[1]))
        parts.append(f'<polyline points="{points}" stroke="{colour}" stroke-width="1.6" fill="none"/>')
        parts += legend(course, comparison, number, colour)
    return svg_page(width, height, title, summary, subtitle, parts)


def curve_of(course: Course, window: int) -> list[tuple[float, float]]:
    """Points (seconds, loss), at most about POINTS of them."""
    points = list(zip(course.seconds[window - 1 :], course.smoothed(window), strict=True))
    every = -(-len(points) // POINTS)
    return [*points[:-1:every], points[-1]]


def legend(course: Course, comparison: PolicyComparison, number: int, colour: str) -> Iterator[str]:
    x, y = LEFT + WIDTH + 16, TOP + 12 + 34 * number
    reached = course.reaches(comparison.target, comparison.window)
    reaching = "never at the target" if reached is None else f"at the target after {reached:.3g} s"
    yield f'<path d="M{x} {y - 4}h18" stroke="{colour}" stroke-width="2.5"/>'
    yield f'<text x="{x + 24}" y="{y}" fill="#1a1a1a">{escape(course.policy)}</text>'
    yield f'<text x="{x + 24}" y="{y + 15}" fill="#555555">{reaching}</text>'
