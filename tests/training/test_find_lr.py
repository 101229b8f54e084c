"""The range test of a learning rate: which rates it tries, what ends it, and what it makes of the losses."""

from __future__ import annotations

import json
import math
import random
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from lrft.api.planning.find_lr import find_lr
from lrft.recipe.load import load_recipe
from lrft.registry.errors import MissingExtra, NumericalError, UsageError
from lrft.training.rate_choice import choose_rate, means
from lrft.training.rate_sweep import RateSweep, SweepOver

SMOKE = Path(__file__).parents[2] / "recipes" / "smoke"
STEPS = 20


def rates(steps: int = 100, low: float = 1e-6, high: float = 1.0) -> list[float]:
    return [low * (high / low) ** (step / (steps - 1)) for step in range(steps)]


def curve(rate: float) -> float:
    """A loss that falls from 2 to 1 around 1e-3, and rises without end above 1e-1."""
    return 2 - 1 / (1 + (1e-3 / rate) ** 2) + (rate / 1e-1) ** 4


def swept(losses: list[float]) -> tuple[RateSweep, SimpleNamespace]:
    """A sweep that was told these losses, to its end."""
    group = {"lr": 0.0, "initial_lr": 0.01}
    fast = {"lr": 0.0, "initial_lr": 0.16}
    run = SimpleNamespace(step=0, optimizer=SimpleNamespace(param_groups=[group, fast]), metrics={})
    sweep = RateSweep(1e-6, 1.0, 100, 0.01, lambda *told: None)
    try:
        for run.metrics["loss"] in losses:
            sweep.before_step(run)
            assert fast["lr"] == pytest.approx(16 * group["lr"])
            run.step += 1
            sweep.after_step(run)
            assert group["lr"] == pytest.approx(sweep.rates[-1])
    except SweepOver:
        pass
    return sweep, run


def test_rates_rise_by_one_factor_from_the_first_to_the_last():
    sweep, _ = swept([2.0] * 100)
    assert sweep.rates == pytest.approx(rates()) and sweep.rates[-1] == pytest.approx(1.0)
    assert not sweep.blown


@pytest.mark.parametrize(
    ("losses", "last"),
    [
        ([2.0] * 10 + [math.nan] + [2.0] * 9, 11),
        ([2.0] * 10 + [50.0] * 10, 11),
        ([2.0] * 10 + [1.0] * 20 + [2.5] * 20, None),
        ([2.0, 2.3, 2.1, 2.2] * 25, None),
    ],
)
def test_the_loss_has_blown_up_where_it_is_no_number_twice_its_lowest_or_has_lost_what_it_gained(
    losses, last
):
    sweep, run = swept(losses)
    if last is not None:
        assert sweep.blown and run.step == last
    else:
        assert sweep.blown is (1.0 in losses) and (not sweep.blown or 31 < run.step < 50)


@pytest.mark.parametrize("noise", [0.0, 0.02, 0.1])
def test_the_steepest_fall_is_found_in_noise_and_a_decade_below_the_blow_up_bounds_it(noise):
    draw = random.Random(0)
    told = [curve(rate) + draw.gauss(0, noise) for rate in rates()]
    sweep, _ = swept(told)
    assert sweep.blown and 0.05 < sweep.rates[-1] < 0.5
    found = choose_rate(sweep.rates, sweep.losses, 100, sweep.blown)
    assert 3e-4 < found["steepest"] < 3e-3 and found["blow_up"] == sweep.rates[-1]
    assert found["suggested"] == float(f"{min(found['steepest'], sweep.rates[-1] / 10):.2g}")


def test_a_decade_below_the_blow_up_is_taken_where_it_is_lower():
    told = [2 - 1 / (1 + (3e-2 / rate) ** 2) if rate < 0.1 else 90.0 for rate in rates()]
    sweep, _ = swept(told)
    found = choose_rate(sweep.rates, sweep.losses, 100, sweep.blown)
    assert found["steepest"] > found["blow_up"] / 10 == pytest.approx(found["suggested"], rel=0.05)
    assert "a decade below that is lower" in found["why"]


def test_a_loss_that_only_wobbles_suggests_nothing():
    for seed in range(20):
        draw = random.Random(seed)
        told = [2 + draw.gauss(0, 0.1) for _ in range(100)]
        found = choose_rate(rates(), told, 100, False)
        assert found["suggested"] is found["steepest"] is None and "never fell" in found["why"]
    short = choose_rate(rates()[:3], [2.0, 3.0, 9.0], 100, True)
    assert short["suggested"] is None and "before it blew up" in short["why"]


def test_the_mean_of_neighbours_takes_as_many_from_either_side():
    assert means([1.0, 2.0, 6.0, 4.0], 1) == [1.0, 3.0, 4.0, 4.0]


def test_a_recipe_is_swept_and_leaves_nothing(recipe_file, tmp_path, monkeypatch):
    loaded = load_recipe(
        recipe_file(), ["train.stop_below=1e-6", "analyse=[update_rank]", "logging.mlflow=mine"]
    )
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    found = find_lr(loaded, 1e-5, 1e-1, STEPS)
    assert found["rates"] == pytest.approx(rates(STEPS, 1e-5, 1e-1)) and len(found["losses"]) == STEPS
    assert found["losses"][0] == find_lr(loaded, 1e-3, 1e-1, STEPS)["losses"][0]
    assert not list((tmp_path / "here").iterdir())


@pytest.mark.parametrize("name", ["lora_plus", "mezo", "relora", "adalora", "lisa", "dpo", "paged_adamw8bit"])
def test_any_recipe_can_be_swept(name, on_tiny):
    path = SMOKE / f"{name}.yaml"
    small = [*on_tiny(path), "data.train.limit=30", "train.device=cpu"]
    found = find_lr(load_recipe(path, small), 1e-6, 1e-4, STEPS)
    assert len(found["losses"]) == STEPS and all(map(math.isfinite, found["losses"]))


def test_a_loss_that_overflows_ends_the_test_at_that_rate(recipe_file, monkeypatch):
    import lrft.training.loop as loop

    real, calls = loop.read_numbers, []

    def overflows(*args):
        calls.append(args)
        return (math.nan, 0.0) if len(calls) == first else real(*args)

    monkeypatch.setattr(loop, "read_numbers", overflows)
    first = 5
    found = find_lr(load_recipe(recipe_file()), 1e-6, 1e-1, STEPS)
    assert len(found["rates"]) == 4 and found["blow_up"] == found["rates"][-1]
    first = len(calls) + 1
    with pytest.raises(NumericalError, match="step 1: loss nan"):
        find_lr(load_recipe(recipe_file()), 1e-6, 1e-1, STEPS)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"low": 1.0}, "rates have to rise"),
        ({"low": 0.0}, "rates have to rise"),
        ({"steps": 19}, "at least 20"),
    ],
)
def test_rates_that_do_not_rise_are_refused(recipe_file, given, message):
    with pytest.raises(UsageError, match=message):
        find_lr(load_recipe(recipe_file()), **given)


def test_what_a_picture_needs_is_asked_before_anything_trains(recipe_file, tmp_path, monkeypatch):
    monkeypatch.setattr("lrft.api.planning.find_lr._prepare", lambda *args: pytest.fail("it trains"))
    loaded = load_recipe(recipe_file())
    with monkeypatch.context() as patch:
        for name in ("matplotlib", "matplotlib.figure"):
            patch.setitem(sys.modules, name, None)
        with pytest.raises(MissingExtra, match=r"pip install 'lrft\[plot\]'"):
            find_lr(loaded, plot=tmp_path / "rates.png")


def test_a_picture_is_a_file_of_its_kind(tmp_path, monkeypatch):
    pytest.importorskip("matplotlib")
    from lrft.api.planning.rate_plot import Plot

    monkeypatch.delenv("DISPLAY", raising=False)
    told = [curve(rate) for rate in rates()[:90]]
    found = {
        "recipe": "a",
        "rates": rates()[:90],
        "losses": told,
        **choose_rate(rates()[:90], told, 100, True),
    }
    Plot(tmp_path / "rates.png").draw(found)
    assert (tmp_path / "rates.png").read_bytes().startswith(b"\x89PNG")
    for name, message in (("rates.xyz", "a name that ends in"), ("no/rates.png", "no such folder")):
        with pytest.raises(UsageError, match=message):
            Plot(tmp_path / name)


def test_the_command_prints_a_table_and_what_it_suggests(capsys):
    from lrft.commands.find_lr import _show

    told = [curve(rate) for rate in rates()[:90]]
    found = {
        "recipe": "a",
        "rates": rates()[:90],
        "losses": told,
        **choose_rate(rates()[:90], told, 100, True),
    }
    _show(found)
    head, *lines, why, last = capsys.readouterr().out.splitlines()
    assert head.split() == ["rate", "loss"] and len(lines) == 14 and lines[0].split() == ["1e-06", "2.0000"]
    assert why == found["why"] and last == f"suggested: optimizer.lr={found['suggested']:g}"
    json.dumps(found, allow_nan=False)
