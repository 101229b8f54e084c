"""A line plot as SVG: one line a series over values that double, no library, the same bytes for the same numbers."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from html import escape

WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 640, 360, 70, 110, 20, 50
COLORS = ("#1f77b4", "#d62728", "#2ca02c", "#9467bd")
GRAY = "#888"  # to be read on a light page and on a dark one
LINES = 4  # of the grid, above zero

Point = tuple[float, float]


def line_plot(series: Mapping[str, Sequence[Point]], x_label: str, y_label: str) -> str:
    """The plot: x on a logarithmic axis with the given values marked, y from zero.

    Raises:
        ValueError: no point, or an x that is not positive.
    """
    points = [point for line in series.values() for point in line]
    if not points or min(x for x, _ in points) <= 0:
        raise ValueError("a plot needs points, and a logarithmic axis positive values")
    values = sorted({x for x, _ in points})
    top = nice(max(y for _, y in points))
    span = math.log(values[-1] / values[0]) or 1.0

    def place(x: float, y: float) -> tuple[str, str]:
        across = LEFT + (WIDTH - LEFT - RIGHT) * math.log(x / values[0]) / span
        return f"{across:.1f}", f"{HEIGHT - BOTTOM - (HEIGHT - TOP - BOTTOM) * y / top:.1f}"

    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" '
        'font-family="sans-serif" font-size="12">'
    ]
    for step in range(LINES + 1):
        _, y = place(values[0], top * step / LINES)
        parts.append(f'<path d="M{LEFT} {y}H{WIDTH - RIGHT}" stroke="{GRAY}" stroke-opacity="0.4"/>')
        parts.append(_text(str(LEFT - 6), y, f"{top * step / LINES:g}", "end"))
    for x in values:
        parts.append(_text(place(x, 0)[0], str(HEIGHT - BOTTOM + 18), f"{x:g}", "middle"))
    parts.append(_text(str((LEFT + WIDTH - RIGHT) // 2), str(HEIGHT - 8), x_label, "middle"))
    parts.append(
        f'<g transform="rotate(-90 16 {HEIGHT // 2})">{_text("16", str(HEIGHT // 2), y_label, "middle")}</g>'
    )
    for color, (name, line) in zip(COLORS, series.items(), strict=False):
        places = [place(x, y) for x, y in sorted(line)]
        path = " ".join(f"{x},{y}" for x, y in places)
        parts.append(f'<polyline points="{path}" fill="none" stroke="{color}" stroke-width="2"/>')
        parts += [f'<circle cx="{x}" cy="{y}" r="3" fill="{color}"/>' for x, y in places]
        x, y = places[-1]
        parts.append(_text(f"{float(x) + 8:.1f}", y, name, "start", color))
    return "\n".join([*parts, "</svg>"]) + "\n"


def nice(value: float) -> float:
    """The next 1, 2, 4, 6 or 8 times a power of ten."""
    power = 10.0 ** math.floor(math.log10(value)) if value > 0 else 1.0
    return next(step * power for step in (1, 2, 4, 6, 8, 10) if step * power >= value)


def _text(x: str, y: str, words: str, anchor: str, color: str = GRAY) -> str:
    place = f'x="{x}" y="{y}" text-anchor="{anchor}" dominant-baseline="middle"'
    return f'<text {place} fill="{color}">{escape(words)}</text>'
