"""Plots as SVG, no library, the same bytes for the same numbers: lines over values that double, and named points."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
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

    parts = _axes(place, values, [top * step / LINES for step in range(LINES + 1)], x_label, y_label)
    for color, (name, line) in zip(COLORS, series.items(), strict=False):
        places = [place(x, y) for x, y in sorted(line)]
        path = " ".join(f"{x},{y}" for x, y in places)
        parts.append(f'<polyline points="{path}" fill="none" stroke="{color}" stroke-width="2"/>')
        parts += [f'<circle cx="{x}" cy="{y}" r="3" fill="{color}"/>' for x, y in places]
        x, y = places[-1]
        parts.append(_text(f"{float(x) + 8:.1f}", y, name, "start", color))
    return "\n".join([*parts, "</svg>"]) + "\n"


def point_plot(points: Mapping[str, Point], x_label: str, y_label: str) -> str:
    """A named point each, on an x axis from zero and a y axis between the least and the most; names also on hovering.

    Raises:
        ValueError: no point.
    """
    if not points:
        raise ValueError("a plot needs points")
    right = nice(max(x for x, _ in points.values()))
    low, high = (edge(y for _, y in points.values()) for edge in (min, max))
    span = (high - low) or abs(high) or 1.0

    def place(x: float, y: float) -> tuple[str, str]:
        up = (HEIGHT - TOP - BOTTOM) * (0.05 + 0.9 * (y - low) / span)
        return f"{LEFT + (WIDTH - LEFT - RIGHT) * x / right:.1f}", f"{HEIGHT - BOTTOM - up:.1f}"

    ticks = [low + span * step / LINES for step in range(LINES + 1)]
    parts = _axes(place, [right * step / LINES for step in range(LINES + 1)], ticks, x_label, y_label)
    for number, (name, (x, y)) in enumerate(points.items()):
        color = COLORS[number % len(COLORS)]
        across, up = place(x, y)
        parts.append(
            f'<circle cx="{across}" cy="{up}" r="3" fill="{color}"><title>{escape(name)}</title></circle>'
        )
        parts.append(_text(f"{float(across) + 5:.1f}", up, name, "start", color))
    return "\n".join([*parts, "</svg>"]) + "\n"


def _axes(
    place: Callable[[float, float], tuple[str, str]],
    across: Sequence[float],
    up: Sequence[float],
    x_label: str,
    y_label: str,
) -> list[str]:
    """The opening tag, a line and a number at every value of the y axis, a number at every one of the x axis."""
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" '
        'font-family="sans-serif" font-size="12">'
    ]
    for value in up:
        _, y = place(across[0], value)
        parts.append(f'<path d="M{LEFT} {y}H{WIDTH - RIGHT}" stroke="{GRAY}" stroke-opacity="0.4"/>')
        parts.append(_text(str(LEFT - 6), y, f"{value:.4g}", "end"))
    for x in across:
        parts.append(_text(place(x, up[0])[0], str(HEIGHT - BOTTOM + 18), f"{x:g}", "middle"))
    parts.append(_text(str((LEFT + WIDTH - RIGHT) // 2), str(HEIGHT - 8), x_label, "middle"))
    label = _text("16", str(HEIGHT // 2), y_label, "middle")
    return [*parts, f'<g transform="rotate(-90 16 {HEIGHT // 2})">{label}</g>']


def nice(value: float) -> float:
    """The next 1, 2, 4, 6 or 8 times a power of ten."""
    power = 10.0 ** math.floor(math.log10(value)) if value > 0 else 1.0
    return next(step * power for step in (1, 2, 4, 6, 8, 10) if step * power >= value)


def _text(x: str, y: str, words: str, anchor: str, color: str = GRAY) -> str:
    place = f'x="{x}" y="{y}" text-anchor="{anchor}" dominant-baseline="middle"'
    return f'<text {place} fill="{color}">{escape(words)}</text>'
