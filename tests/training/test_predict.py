"""What short runs say of a whole one, on curves and throughputs that are known."""

import json
import math
import random

import pytest

from lrft.api.planning.power_law import fit, proceed
from lrft.api.planning.predict import line_through, predict
from lrft.recipe.load import load_recipe
from lrft.recipe.resolved import resolved
from lrft.registry.errors import UsageError

STEPS = [10.0 * k for k in range(1, 21)]


def losses(noise: float = 0.0) -> list[float]:
    draw = random.Random(0)
    return [1.5 + 4 * step**-0.5 + noise * draw.gauss(0, 1) for step in STEPS]


def test_a_curve_of_its_form_is_found_again():
    curve = fit(STEPS, losses())
    assert curve.alpha == pytest.approx(0.5, rel=0.06) and curve.at(2000) == pytest.approx(
        1.5 + 4 * 2000**-0.5, abs=0.02
    )
    assert fit(STEPS, [2.0] * 20).at(1e6) == 2.0
    rising = fit(STEPS, [1 + step / 1000 for step in STEPS])
    assert rising.scale == 0 and rising.at(1e6) == pytest.approx(1.105)
    with pytest.raises(ValueError, match="a curve needs 4 points, not 3"):
        fit(STEPS[:3], losses()[:3])


def test_the_interval_holds_the_truth_and_grows_with_the_noise():
    truth = 1.5 + 4 * 1000**-0.5
    little, much = (proceed(STEPS, losses(noise), 1000) for noise in (0.01, 0.05))
    assert little.low < truth < little.high and little.low < little.loss < little.high
    assert much.high - much.low > 2 * (little.high - little.low)


def test_a_line_goes_through_its_points():
    points = [(math.log(rows), 0.317 + 0.281 * math.log(rows)) for rows in (1, 2, 4, 8)]
    assert line_through(points) == pytest.approx((0.317, 0.281, 0.0))


@pytest.fixture
def short(tmp_path, monkeypatch):
    """`short(name, *overrides, seconds=...)` -> the folder of a run that took so long a step, with the losses above."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "rows.jsonl").write_text('{"prompt": "a", "completion": "b"}\n')
    (tmp_path / "mine.yaml").write_text(
        "model: {name: nobody/nothing}\ndata: {train: {source: rows.jsonl}, format: prompt_completion}\n"
        "train: {max_steps: 2000, batch_size: 2}\n"
    )

    def make(name, *overrides, seconds=1.0, made=None, rates=None):
        folder = tmp_path / name
        folder.mkdir()
        (folder / "recipe.yaml").write_text(resolved(load_recipe("mine.yaml", overrides).recipe))
        lines = [
            {"step": int(step), "loss": loss, "seconds": 9.0 if step == 10 else seconds, "lr": rate}
            for step, loss, rate in zip(STEPS, made or losses(), rates or [1e-3] * 20, strict=True)
        ]
        (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
        return folder

    return make


def test_cost_and_loss_are_those_of_the_runs(short):
    run = short("short", "train.max_steps=200", seconds=0.5)
    found = predict("mine.yaml", [run], 3.0)
    assert found["seconds"] == pytest.approx(2000 * 0.5) and found["cost"] == pytest.approx(
        3000 * 0.5 / 3600 * 2
    )
    assert found["quality"]["loss"] == pytest.approx(1.5 + 4 * 2000**-0.5, abs=0.02)
    assert found["quality"]["times_as_far"] == 10 and found["quality"]["metric"] == "loss"
    assert found["quality"]["tried"] == pytest.approx(found["quality"]["seen"], abs=0.01)


def test_three_batches_give_a_line_to_others(short):
    """Rows a second 1 + 2 ln(rows of a step)."""
    runs = [
        short(
            f"b{rows}",
            "train.max_steps=200",
            f"train.batch_size={rows}",
            seconds=rows / (1 + 2 * math.log(rows)),
        )
        for rows in (1, 2, 4)
    ]
    speed = predict("mine.yaml", runs)["speed"]
    assert (speed["a"], speed["b"]) == pytest.approx((1, 2)) and speed["rows_per_second"] == pytest.approx(
        1 + 2 * math.log(2)
    )


def test_what_cannot_be_predicted_is_refused(short):
    with pytest.raises(UsageError, match=r"a run of another recipe \(adapter.rank: 32 -> "):
        predict("mine.yaml", [short("other", "adapter.rank=32")])
    with pytest.raises(UsageError, match=r"no run .* has the recipe's 2 rows a step"):
        predict("mine.yaml", [short("wide", "train.batch_size=8")])
    with pytest.raises(UsageError, match=r"write train\.max_steps"):
        predict("mine.yaml", [], overrides=["train.max_steps=null", "train.epochs=1"])


def test_losses_that_say_nothing_of_a_curve_are_refused(short):
    below = short("below", made=[-1.0 - step / 1e3 for step in STEPS])
    with pytest.raises(UsageError, match=r"losses of cross_entropy go below 0, where no curve .* can go"):
        predict("mine.yaml", [below])
    drawn = "objective={method: grpo, rewards: [exact_match]}"
    with pytest.raises(UsageError, match="the loss of grpo does not say how good answers are"):
        predict("mine.yaml", [short("drawn", drawn)], overrides=[drawn])


def test_what_makes_a_curve_worth_less_is_told(short, capsys):
    predict("mine.yaml", [short("plain")])
    assert capsys.readouterr().err == ""
    predict("mine.yaml", [short("rising", made=[1 + step / 1e3 for step in STEPS])])
    assert "rising: its losses do not fall, so their mean is gone on with" in capsys.readouterr().err
    predict("mine.yaml", [short("decayed", rates=[1e-3 * (1 - step / 200) for step in STEPS])])
    assert "decayed: its rate fell to 0% of its largest by its own end" in capsys.readouterr().err
