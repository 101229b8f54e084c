"""Reading and thinning of metrics.jsonl."""

from __future__ import annotations

import json
import math

import pytest

from lrft.lab.report.metrics import read_metrics, thin


def write(path, *lines) -> None:
    path.write_text("".join(line if isinstance(line, str) else json.dumps(line) + "\n" for line in lines))


def test_every_number_is_a_point_of_its_column(tmp_path):
    write(
        tmp_path / "m",
        {"step": 1, "loss": 2.0},
        {"step": 2, "loss": 1.0, "eval_loss": 1.5, "note": "x", "on": True},
    )
    found = read_metrics(tmp_path / "m")
    assert found.columns["loss"] == [(1, 2.0), (2, 1.0)] and found.columns["eval_loss"] == [(2, 1.5)]
    assert "note" not in found.columns and (found.step, found.lines, found.damaged) == (2, 2, [])
    assert found.last("loss") == 1.0 and found.last("nothing") is None


def test_what_is_no_number_is_a_gap(tmp_path):
    write(
        tmp_path / "m", {"step": 1, "loss": math.nan}, {"step": 2, "loss": math.inf}, {"step": 3, "loss": 1.0}
    )
    found = read_metrics(tmp_path / "m")
    assert found.columns["loss"] == [(1, None), (2, None), (3, 1.0)]


@pytest.mark.parametrize("cut", ['{"step": 3, "lo', '{"step": 3', "\x00\x00"])
def test_a_last_line_that_a_kill_cut_short_is_left_out(tmp_path, cut):
    write(tmp_path / "m", {"step": 1, "loss": 2.0}, {"step": 2, "loss": 1.0}, cut)
    found = read_metrics(tmp_path / "m")
    assert found.step == 2 and found.damaged == []


@pytest.mark.parametrize("bad", ["no json\n", "[1]\n", '{"loss": 1}\n', '{"step": NaN}\n', "\n"])
def test_a_damaged_line_amid_the_others_is_counted(tmp_path, bad):
    write(tmp_path / "m", {"step": 1, "loss": 2.0}, bad, {"step": 2, "loss": 1.0})
    found = read_metrics(tmp_path / "m")
    assert found.damaged == [2] and found.step == 2


def test_no_file_is_an_empty_run(tmp_path):
    found = read_metrics(tmp_path / "none")
    assert (found.columns, found.step, found.lines) == ({}, 0, 0)


def test_a_short_curve_stays_whole():
    points = [(x, float(x)) for x in range(100)]
    assert thin(points, 100) == points


@pytest.mark.parametrize("most", [4, 10, 101, 998])
def test_a_thinned_curve_has_its_ends_and_its_spikes_and_no_more_points_than_asked_for(most):
    points = [(x, math.sin(x / 50)) for x in range(10_000)]
    points[7_777] = (7_777, 50.0)
    points[1_234] = (1_234, -50.0)
    found = thin(points, most)
    assert len(found) <= most and set(found) <= set(points)
    assert found[0] == points[0] and found[-1] == points[-1]
    assert {points[7_777], points[1_234]} <= set(found)
    assert [x for x, _ in found] == sorted({x for x, _ in found})


def test_a_gap_survives():
    points = [(x, None if x == 500 else 1.0) for x in range(1_000)]
    assert (500, None) in thin(points, 50)
