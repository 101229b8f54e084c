"""Geometry of a line chart: from points to what an SVG polyline is given, with ticks at round numbers."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from lrft.lab.report.metrics import Point

LEFT, TOP, BOTTOM, RIGHT = 58, 10, 30, 10  # pixels around the plot
DECADES = 2.0  # a range of positive values that is wider is drawn on a logarithmic axis


@dataclass(frozen=True)
class Line:
    """A curve of one run.

    Attributes:
        run: its number, which decides the colour.
        kind: `line`, `dashed`, or `dots` for few points.
    """

    run: int
    label: str
    points: Sequence[Point]
    kind: str = "line"


@dataclass(frozen=True)
class Band:
    """The range between two curves of one run."""

    run: int
    low: Sequence[Point]
    high: Sequence[Point]


@dataclass(frozen=True)
class Path:
    """What one polyline is drawn from; `points` are pixels, as SVG writes them."""

    run: int
    label: str
    kind: str
    points: str


@dataclass(frozen=True)
class Chart:
    """A chart as a template draws it. Ticks are (pixel, text); the ranges are those of the plot's edges."""

    title: str
    unit: str
    width: int
    height: int
    x_ticks: list[tuple[float, str]]
    y_ticks: list[tuple[float, str]]
    paths: list[Path]
    bands: list[Path]
    x: tuple[float, float]
    y: tuple[float, float]
    log: bool

    @property
    def plot(self) -> tuple[int, int, int, int]:
        """Left, top, right and bottom edge in pixels."""
        return LEFT, TOP, self.width - RIGHT, self.height - BOTTOM


def draw(
    title: str,
    lines: Sequence[Line],
    unit: str = "step",
    bands: Sequence[Band] = (),
    log: bool | None = None,
    size: tuple[int, int] = (560, 220),
) -> Chart | None:
    """The chart of some curves; None where no point has a finite value.

    Args:
        unit: what is along the x axis.
        log: whether the y axis is logarithmic; by default where all values are positive and span two decades. Values
            that such an axis cannot show are gaps.
    """
    everything = [
        *(line.points for line in lines),
        *(edge for band in bands for edge in (band.low, band.high)),
    ]
    xs = [x for points in everything for x, _ in points]
    ys = [y for points in everything for _, y in points if y is not None]
    log = _spans_decades(ys) if log is None else log
    if log:
        ys = [y for y in ys if y > 0]
    if not ys:
        return None
    axes = _Axes(_range(xs), _range([math.log10(y) for y in ys] if log else ys, room=0.05), log, *size)
    return Chart(
        title,
        unit,
        *size,
        [(axes.right_of(tick), text) for tick, text in _ticks(*axes.x, 6, least=1.0)],
        [(axes.up_to(tick), text) for tick, text in axes.y_ticks()],
        [Path(line.run, line.label, line.kind, part) for line in lines for part in axes.parts(line.points)],
        [Path(band.run, "", "band", axes.around(band)) for band in bands],
        axes.x,
        axes.y,
        log,
    )


@dataclass(frozen=True)
class _Axes:
    x: tuple[float, float]
    y: tuple[float, float]
    log: bool
    width: int
    height: int

    def right_of(self, x: float) -> float:
        return _place(x, self.x, LEFT, self.width - RIGHT)

    def up_to(self, y: float) -> float:
        """Pixel of a value, of its logarithm on a logarithmic axis."""
        return _place(y, self.y, self.height - BOTTOM, TOP)

    def y_ticks(self) -> list[tuple[float, str]]:
        if not self.log:
            return list(_ticks(*self.y, 5))
        low, high = math.ceil(self.y[0]), math.floor(self.y[1])
        if high - low < 1:  # no two powers of ten are in sight
            inner = [value for value, _ in _ticks(10 ** self.y[0], 10 ** self.y[1], 5) if value > 0]
            return [(math.log10(value), _text(value)) for value in inner]
        return [(power, f"1e{power}") for power in range(low, high + 1, max(1, (high - low) // 4))]

    def parts(self, points: Sequence[Point]) -> list[str]:
        """The curve in pixels, cut at its gaps."""
        found: list[list[str]] = [[]]
        for x, y in points:
            if y is None or (self.log and y <= 0):
                found.append([])
            else:
                found[-1].append(self.pixel(x, y))
        return [" ".join(part) for part in found if part]

    def around(self, band: Band) -> str:
        """The outline of a band."""
        edge = [*band.low, *reversed(band.high)]
        return " ".join(self.pixel(x, y) for x, y in edge if y is not None and (y > 0 or not self.log))

    def pixel(self, x: float, y: float) -> str:
        up = self.up_to(math.log10(y) if self.log else y)
        return f"{self.right_of(x):.1f},{up:.1f}"


def _place(value: float, span: tuple[float, float], begin: float, end: float) -> float:
    return round(begin + (value - span[0]) / (span[1] - span[0]) * (end - begin), 1)


def _spans_decades(values: Sequence[float]) -> bool:
    return bool(values) and min(values) > 0 and max(values) / min(values) > 10**DECADES


def _range(values: Iterable[float], room: float = 0.0) -> tuple[float, float]:
    """From the lowest to the highest, wider by a share; around a single value."""
    known = list(values)
    low, high = min(known), max(known)
    if low == high:
        return low - (abs(low) or 1) / 2, high + (abs(high) or 1) / 2
    return low - room * (high - low), high + room * (high - low)


def _ticks(low: float, high: float, most: int, least: float = 0.0) -> list[tuple[float, str]]:
    """Round numbers within a range: multiples of 1, 2 or 5 times a power of ten, at least `least` apart."""
    rough = (high - low) / most
    power = 10.0 ** math.floor(math.log10(rough))
    step = max(least, next(factor * power for factor in (1, 2, 5, 10) if factor * power >= rough))
    first = math.ceil(low / step)
    numbers = [place * step for place in range(first, math.floor(high / step) + 1)]
    return [(number, _text(number)) for number in numbers]


def _text(value: float) -> str:
    if value and not 1e-3 <= abs(value) < 1e6:
        return f"{value:.2g}"
    return f"{value:.6g}"
