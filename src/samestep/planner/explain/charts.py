"""Bar chart of plans, each bar cut into the parts of its step. SVG for a page that has the colours as CSS classes."""

from collections.abc import Iterator, Sequence
from html import escape

from samestep.plan.prediction import PARTS, in_ms
from samestep.planner.explain.plan_comparison import Comparison

WIDTH, LEFT, RIGHT, ROW, BAR, TOP = 960, 260, 90, 32, 20, 36  # pixels


def parts_chart(plans: Sequence[Comparison]) -> str:
    """The chart; the first plan is the pick."""
    most = max(plan.seconds for plan in plans)
    scale = (WIDTH - LEFT - RIGHT) / most
    height = TOP + ROW * len(plans) + 4
    return "\n".join(
        [
            f'<svg role="img" aria-label="{escape(chart_label(plans))}" viewBox="0 0 {WIDTH} {height}" class="chart">',
            *parts_legend(),
            *(line for number, plan in enumerate(plans) for line in plan_bar(plan, TOP + ROW * number, scale)),
            "</svg>",
        ]
    )


def chart_label(plans: Sequence[Comparison]) -> str:
    return "Predicted step time by plan: " + "; ".join(f"{plan.name} {in_ms(plan.seconds)} ms" for plan in plans)


def parts_legend() -> Iterator[str]:
    for number, part in enumerate(PARTS):
        x = LEFT + 104 * number
        yield f'<rect x="{x}" y="6" width="12" height="12" class="{part}"/>'
        yield f'<text x="{x + 17}" y="16">{part}</text>'


def plan_bar(plan: Comparison, y: int, scale: float) -> Iterator[str]:
    middle = y + BAR - 6
    yield f'<text x="{LEFT - 10}" y="{middle}" text-anchor="end">{escape(shortened(plan.name))}</text>'
    at = float(LEFT)
    for part in PARTS:
        width = plan.parts[part] * scale
        title = f"{plan.name}: {part} {in_ms(plan.parts[part])} ms"
        yield (
            f'<rect x="{at:.2f}" y="{y}" width="{width:.2f}" height="{BAR}" class="{part}">'
            f"<title>{escape(title)}</title></rect>"
        )
        at += width
    yield f'<text x="{at + 8:.2f}" y="{middle}">{in_ms(plan.seconds)} ms</text>'


def shortened(name: str, most: int = 36) -> str:
    return name if len(name) <= most else f"{name[: most - 1]}…"
