"""Rates that are proposed one after the other: equally many for every arm, the same again after an interruption."""

from __future__ import annotations

import builtins
import json
import math
from statistics import fmean

import pytest

from lrft.lab.compare.command import compare_recipes
from lrft.lab.compare.search import search_rates
from lrft.lab.compare.settings import parse_settings
from lrft.lab.runs.planned import make_arm
from lrft.registry.errors import MissingExtra, UsageError


@pytest.fixture
def arms(recipe):
    path = recipe("a")
    return [make_arm("x", path, group="g"), make_arm("y", path, group="g"), make_arm("z", path)]


@pytest.fixture
def two(recipe):
    return [str(recipe("a")), str(recipe("b", "{method: lora, rank: 6, alpha: 8}"))]


class Formula:
    """A loss that is smallest at rate 1e-2, for `y` at 1e-3, and diverges above 0.1. Remembers what was asked."""

    def __init__(self) -> None:
        self.asked: list[dict[str, float]] = []

    def __call__(self, points):
        self.asked.append({arm.label: rate for arm, rate in points})
        return [
            None if rate > 0.1 else abs(math.log10(rate) + (3 if arm.label == "y" else 2))
            for arm, rate in points
        ]


def compare(arguments, out, trials, jobs=2, grid="1e-5,1"):
    settings = parse_settings(out, by="steps", rates=grid, seeds="1", jobs=jobs, trials=trials)
    returned = compare_recipes(arguments, settings)
    return returned, json.loads((out / "report.json").read_text())


def test_a_search_goes_where_losses_are_low_although_some_rates_diverge(arms):
    asked = Formula()
    tried, grid = search_rates(arms, [1e-5, 1.0], 24, asked)
    finite = {rate: loss for rate, loss in zip(tried["z"], grid["z"], strict=True) if loss is not None}
    assert len(finite) < len(tried["z"])
    assert 0.005 < min(finite, key=finite.get) < 0.02
    away = [abs(math.log10(point["z"]) + 2) for point in asked.asked]
    assert fmean(away[12:]) < 0.75 * fmean(away[:12])


def test_the_first_trials_are_evenly_spaced_from_end_to_end_for_every_arm(arms):
    asked = Formula()
    search_rates(arms, [1e-5, 1e-2], 4, asked)
    assert [point["z"] for point in asked.asked] == [1e-5, 1e-4, 1e-3, 1e-2]
    assert all(len(set(point.values())) == 1 for point in asked.asked)


def test_arms_of_one_group_are_tried_at_the_same_rates(arms):
    """Though each alone would be tried elsewhere."""
    asked = Formula()
    search_rates(arms, [1e-5, 1.0], 9, asked)
    assert all(point["x"] == point["y"] for point in asked.asked)
    assert len(asked.asked) == 9


def test_proposals_are_the_same_again_and_a_longer_search_begins_with_them(arms):
    short, again, long = Formula(), Formula(), Formula()
    search_rates(arms, [1e-5, 1.0], 7, short)
    search_rates(arms, [1e-5, 1.0], 7, again)
    search_rates(arms, [1e-5, 1.0], 12, long)
    assert short.asked == again.asked == long.asked[:7]


def test_proposals_stay_within_the_grid_and_have_three_digits(arms):
    asked = Formula()
    search_rates(arms, [1.2345e-3, 1.2399e-3, 1.2361e-3], 5, asked)
    rates = [rate for point in asked.asked for rate in point.values()]
    assert all(1.2345e-3 <= rate <= 1.2399e-3 for rate in rates)
    asked = Formula()
    search_rates(arms, [1e-4, 1e-2], 5, asked)
    assert all(float(f"{rate:.3g}") == rate for point in asked.asked for rate in point.values())


def test_what_one_arm_loses_does_not_change_what_another_is_tried_at(recipe):
    a, b = make_arm("a", recipe("a")), make_arm("b", recipe("b"))
    together, alone = Formula(), Formula()
    search_rates([a, b], [1e-5, 1.0], 8, together)
    search_rates([b], [1e-5, 1.0], 8, alone)
    assert [point["b"] for point in together.asked] == [point["b"] for point in alone.asked]


def test_every_arm_gets_the_same_number_of_trials_on_the_tuning_seed(stand_in, two, tmp_path):
    _, record = compare(two, tmp_path / "out", trials=6)
    started = (tmp_path / "out" / "started").read_text().split()
    for label in "ab":
        mine = [name for name in started if name.startswith(f"{label}-")]
        assert sum("-seed1000-" in name for name in mine) == 6
        assert sum("-seed0-" in name for name in mine) == 1
    for arm in record["arms"]:
        points = {point["rate"]: point["loss"] for point in arm["grid"]}
        assert points[arm["rate"]] == min(loss for loss in points.values() if loss is not None)
    assert (record["trials"], record["rates"]) == (6, [1e-5, 1.0])


def test_a_second_search_runs_nothing_and_a_longer_one_only_what_is_new(stand_in, two, tmp_path):
    out = tmp_path / "out"
    _, before = compare(two, out, trials=4)
    count = len((out / "started").read_text().split())
    _, after = compare(two, out, trials=4, jobs=1)
    assert len((out / "started").read_text().split()) == count
    assert [arm["grid"] for arm in after["arms"]] == [arm["grid"] for arm in before["arms"]]
    compare(two, out, trials=5)
    new = (out / "started").read_text().split()[count:]
    assert sum("-seed1000-" in name for name in new) == 2


def test_the_report_says_that_rates_were_searched_for(stand_in, two, tmp_path):
    _, record = compare(two, tmp_path / "out", trials=4)
    text = (tmp_path / "out" / "report.md").read_text()
    assert "4 trials that Optuna proposed between 1e-05 and 1 at seed 1000" in text
    arm = record["arms"][0]
    assert f"| a | {arm['rate']:g} | **" in text


@pytest.mark.parametrize(
    ("trials", "grid", "message"), [(3, "1e-4,1e-2", "4 trials"), (4, "1e-4", "two rates")]
)
def test_a_search_of_nothing_is_refused_before_anything_runs(two, tmp_path, trials, grid, message):
    with pytest.raises(UsageError, match=message):
        compare(two, tmp_path / "out", trials=trials, grid=grid)
    assert not (tmp_path / "out").exists()


def test_without_optuna_the_install_line_is_said(arms, monkeypatch):
    real = builtins.__import__

    def missing(name, *args, **kwargs):
        if name == "optuna":
            raise ImportError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", missing)
    with pytest.raises(MissingExtra, match=r"pip install 'lrft\[search\]'"):
        search_rates(arms, [1e-4, 1e-2], 4, Formula())
