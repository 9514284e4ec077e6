"""Layout of results: rows of text in aligned columns, and the frame of an SVG picture."""

from collections.abc import Iterable, Sequence
from html import escape


def aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    """Rows of cells as lines: the first column to the left, all others to the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["  ".join([f"{row[0]:{widths[0]}}", *map(str.rjust, row[1:], widths[1:])]) for row in rows]


def svg_page(width: int, height: int, title: str, summary: str, subtitle: str, parts: Iterable[str]) -> str:
    """An SVG with a title, a line below it, and `parts`. summary: for those who cannot see the picture."""
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" role="img" aria-labelledby="title summary" width="{width}" '
            f'height="{height}" viewBox="0 0 {width} {height}" font-family="system-ui, sans-serif" font-size="12">',
            f'<title id="title">{escape(title)}</title>',
            f'<desc id="summary">{escape(summary)}</desc>',
            f'<rect width="{width}" height="{height}" fill="#ffffff"/>',
            f'<text x="16" y="26" font-size="15" font-weight="600" fill="#1a1a1a">{escape(title)}</text>',
            f'<text x="16" y="44" fill="#555555">{subtitle}</text>',
            *parts,
            "</svg>",
        ]
    )
