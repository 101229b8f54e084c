"""What a start loses of the weights, against the weights themselves."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from lrft.api.training.train import train
from lrft.model.load import load_model
from lrft.recipe.load import load_recipe
from lrft.registry.axes import QUANTIZERS

SMOKE = Path(__file__).parents[3] / "recipes" / "smoke"


def found(tiny, folder: Path, *overrides: str) -> dict:
    small = [f"model.name={tiny()}", "model.dtype=float32", "data.train.limit=20", "data.eval.limit=4"]
    small += [
        "train.max_steps=1",
        "train.eval_every=1",
        "train.device=cpu",
        "analyse=[start_error]",
        "adapter.dropout=0",
    ]
    loaded = load_recipe(SMOKE / "lora.yaml", [*small, *overrides])
    return train(loaded, folder, resume=False)["analysis"]["start_error"]


def test_a_stored_base_loses_its_rounding_and_no_more(tiny, tmp_path):
    error = found(tiny, tmp_path / "run", "quantization=nf4_reference")
    recipe = load_recipe(SMOKE / "lora.yaml", [f"model.name={tiny()}", "model.dtype=float32"]).recipe
    name, value = next(iter(error["frobenius"].items()))
    weight = load_model(recipe.model).hf.get_submodule(name).weight.detach()
    stored = QUANTIZERS.get("nf4_reference")(weight, None, QUANTIZERS.settings("nf4_reference"))
    rounding = weight - stored.weight()
    assert value == pytest.approx(float(rounding.norm()), rel=1e-5)
    assert error["nuclear"][name] == pytest.approx(float(torch.linalg.svdvals(rounding).sum()), rel=1e-5)
    assert len(error["frobenius"]) == 14
    assert error["frobenius_mean"] == pytest.approx(sum(error["frobenius"].values()) / 14)


def test_a_dense_base_loses_nothing_even_when_it_gives_up_the_start(tiny, tmp_path):
    assert found(tiny, tmp_path / "run", "init=pissa", "quantization=none")["frobenius_mean"] < 1e-5


def test_a_joint_decomposition_loses_less_in_every_layer(tiny, tmp_path):
    plain = found(tiny, tmp_path / "plain", "quantization=nf4_reference")["frobenius"]
    fitted = found(tiny, tmp_path / "fitted", "quantization=nf4_reference", "init=loftq")["frobenius"]
    assert all(fitted[site] < plain[site] for site in plain)
