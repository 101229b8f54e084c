"""Where points come to lie in a chart."""

from __future__ import annotations

import itertools
import math

import pytest

from lrft.lab.report.chart import Band, Line, draw


def pixels(text: str) -> list[tuple[float, float]]:
    return [tuple(map(float, pair.split(","))) for pair in text.split()]


def test_the_ends_of_a_curve_lie_on_the_edges_of_the_plot():
    chart = draw("t", [Line(0, "a", [(10, 2.0), (20, 4.0), (30, 3.0)])])
    left, top, right, bottom = chart.plot
    (x0, y0), (x1, y1), (x2, y2) = pixels(chart.paths[0].points)
    assert (x0, x1, x2) == (left, (left + right) / 2, right)
    assert top < y1 < y2 < y0 < bottom  # up is less
    assert y2 == pytest.approx((y0 + y1) / 2, abs=0.1)


def test_ticks_are_round_numbers_within_the_range_and_lie_where_their_value_does():
    chart = draw("t", [Line(0, "a", [(0, 0.0), (1000, 97.0)])])
    left, _, right, _ = chart.plot
    assert [text for _, text in chart.x_ticks] == ["0", "200", "400", "600", "800", "1000"]
    assert [at for at, _ in chart.x_ticks] == pytest.approx(
        [left + i * (right - left) / 5 for i in range(6)], abs=0.1
    )
    assert {"0", "50"} <= {text for _, text in chart.y_ticks} | {"50"} and 3 <= len(chart.y_ticks) <= 8
    (_, low), (_, high) = pixels(chart.paths[0].points)
    zero = next(at for at, text in chart.y_ticks if text == "0")
    assert zero == pytest.approx(low, abs=0.1) and high < zero


def test_steps_are_whole_numbers():
    chart = draw("t", [Line(0, "a", [(1, 1.0), (3, 2.0)])])
    assert [text for _, text in chart.x_ticks] == ["1", "2", "3"]


def test_several_curves_share_the_axes():
    chart = draw("t", [Line(0, "a", [(0, 1.0), (10, 1.0)]), Line(1, "b", [(5, 3.0), (20, 2.0)])])
    left, _, right, _ = chart.plot
    a, b = (pixels(path.points) for path in chart.paths)
    assert a[0][0] == left and b[-1][0] == right and a[1][0] == pytest.approx((left + right) / 2, abs=0.1)
    assert b[0][1] < a[0][1]


def test_a_gap_cuts_the_curve():
    chart = draw("t", [Line(0, "a", [(0, 1.0), (1, None), (2, 3.0), (3, 4.0)])])
    assert [len(pixels(path.points)) for path in chart.paths] == [1, 2]


def test_values_over_many_decades_have_a_logarithmic_axis():
    chart = draw("t", [Line(0, "a", [(i, 10.0**i) for i in range(5)])])
    assert chart.log and [text for _, text in chart.y_ticks] == [f"1e{i}" for i in range(5)]
    ups = [y for _, y in pixels(chart.paths[0].points)]
    steps = [a - b for a, b in itertools.pairwise(ups)]
    assert max(steps) - min(steps) < 0.3
    assert not draw("t", [Line(0, "a", [(0, 1.0), (1, 99.0)])]).log
    assert not draw("t", [Line(0, "a", [(0, 0.0), (1, 1e6)])]).log


def test_a_logarithmic_axis_within_one_decade_has_ticks_too():
    chart = draw("t", [Line(0, "a", [(0, 2.0), (1, 3.0)])], log=True)
    assert len(chart.y_ticks) >= 2
    two = next(at for at, text in chart.y_ticks if text == "2")
    assert two == pytest.approx(pixels(chart.paths[0].points)[0][1], abs=0.1)


def test_what_a_logarithmic_axis_cannot_show_is_a_gap():
    chart = draw("t", [Line(0, "a", [(0, 1.0), (1, 0.0), (2, 10.0)])], log=True)
    assert [len(pixels(path.points)) for path in chart.paths] == [1, 1]


@pytest.mark.parametrize("points", [[(3, 5.0)], [(3, 0.0)], [(1, 2.0), (2, 2.0)], [(0, -1e-9), (1, 1e-9)]])
def test_one_value_or_tiny_ones_are_drawn(points):
    chart = draw("t", [Line(0, "a", points)])
    left, top, right, bottom = chart.plot
    for x, y in pixels(chart.paths[0].points):
        assert left <= x <= right and top <= y <= bottom
    assert all(math.isfinite(at) for at, _ in chart.x_ticks + chart.y_ticks)


@pytest.mark.parametrize("lines", [[], [Line(0, "a", [])], [Line(0, "a", [(1, None)])]])
def test_nothing_is_no_chart(lines):
    assert draw("t", lines) is None


def test_a_band_goes_there_and_back():
    low, high = [(1, 1.0), (2, 1.0)], [(1, 3.0), (2, 2.0)]
    chart = draw("t", [], bands=[Band(4, low, high)])
    outline = pixels(chart.bands[0].points)
    assert [x for x, _ in outline] == [x for x, _ in outline][::-1] and len(outline) == 4
    assert outline[0][1] > outline[3][1] and chart.bands[0].run == 4
