"""What every analysis keeps to: it looks, finds numbers, and the run is the run without it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from lrft.api.training.train import train
from lrft.recipe.load import load_recipe
from lrft.registry.axes import ANALYSES
from lrft.registry.errors import RecipeError

ROOT = Path(__file__).parents[2]
STEPS = 3
ROUTED = ("adapter={method: mola, rank: 2, dropout: 0}",)


def fitting(name: str) -> tuple[str, ...]:
    """What an adapter has to be for this analysis; a LoRA but for those that look at routers."""
    return ROUTED if "routed" in ANALYSES.declared(name).requires else ()


def trained(tiny, folder: Path, *overrides: str) -> dict:
    small = [
        f"model.name={tiny()}",
        "data.train.limit=30",
        "data.eval.limit=4",
        "train.device=cpu",
        "adapter.dropout=0",
    ]
    small += [f"train.max_steps={STEPS}", f"train.eval_every={STEPS}"]
    recipe = load_recipe(ROOT / "recipes" / "smoke" / "lora.yaml", [*small, *overrides])
    return train(recipe, folder, resume=False)


def lines(folder: Path) -> list[dict]:
    found = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{key: one[key] for key in ("step", "loss", "grad_norm", "lr")} for one in found]


def numbers(found) -> list[float]:
    if isinstance(found, dict | list):
        values = found.values() if isinstance(found, dict) else found
        return [number for value in values for number in numbers(value)]
    return [float(found)]


@pytest.fixture(scope="module")
def plain(tiny, tmp_path_factory) -> Callable[..., Path]:
    """`plain(*overrides)` -> the folder of the run that is not looked at."""
    made: dict[tuple[str, ...], Path] = {}

    def run(*overrides: str) -> Path:
        if overrides not in made:
            made[overrides] = tmp_path_factory.mktemp("plain") / "run"
            trained(tiny, made[overrides], *overrides)
        return made[overrides]

    return run


@pytest.mark.parametrize("name", ANALYSES.names())
def test_a_run_that_is_looked_at_is_the_run_that_is_not(name, tiny, plain, tmp_path):
    result = trained(tiny, tmp_path / "run", f"analyse=[{name}]", *fitting(name))
    bare = plain(*fitting(name))
    assert lines(tmp_path / "run") == lines(bare)
    (weights,) = (path.relative_to(bare) for path in (bare / "adapter").glob("*.safetensors"))
    assert (tmp_path / "run" / weights).read_bytes() == (bare / weights).read_bytes()
    found = result.get("analysis", {}).get(name) or result["held_out_rows"]
    assert numbers(found), "an analysis finds something"


@pytest.mark.parametrize("name", ANALYSES.names())
def test_an_analysis_survives_an_interruption(name, tiny, tmp_path, monkeypatch):
    from lrft.registry.errors import Interrupted
    from lrft.training.keepers import StopOnSignal

    whole = trained(tiny, tmp_path / "whole", f"analyse=[{name}]", *fitting(name))

    def after_step(self, run):
        run.stop_signal = 15 if run.step == 1 else None
        run.stopping = run.step == 1

    with monkeypatch.context() as patch:
        patch.setattr(StopOnSignal, "after_step", after_step)
        with pytest.raises(Interrupted):
            trained(tiny, tmp_path / "run", f"analyse=[{name}]", *fitting(name))
    small = load_recipe(tmp_path / "run" / "recipe.yaml")
    result = train(small, tmp_path / "run", resume=True)
    for key in ("analysis", "held_out_rows"):
        assert result.get(key) == whole.get(key)


def test_an_analysis_that_the_recipe_cannot_serve_is_refused(tiny, tmp_path):
    with pytest.raises(RecipeError, match="gradient_gap requires"):
        trained(tiny, tmp_path / "run", "analyse=[gradient_gap]", "adapter.method=lora_fa")
    with pytest.raises(RecipeError, match="eval_every"):
        trained(tiny, tmp_path / "run", "analyse=[row_losses]", "train.eval_every=null")


@pytest.mark.parametrize("name", ["intruders", "update_rank"])
def test_what_would_find_nothing_is_refused_before_the_first_step(name, tiny, tmp_path):
    with pytest.raises(RecipeError, match="no change of a weight"):
        trained(tiny, tmp_path / "run", f"analyse=[{name}]", "adapter={method: mola, rank: 2}")
    assert not (tmp_path / "run" / "metrics.jsonl").exists()


def test_a_misspelt_analysis_is_told_with_what_there_is(tiny, tmp_path):
    with pytest.raises(RecipeError, match="intruders"):
        trained(tiny, tmp_path / "run", "analyse=[intruder]")
