"""Losses by rank and by row, against the scores that the run itself records."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

import lrft
from lrft.api.opening.open_run import open_run
from lrft.core.adapted import adapted
from lrft.recipe.load import load_recipe
from lrft.training.folder import RunFolder

SMOKE = Path(__file__).parents[3] / "recipes" / "smoke"
STEPS = 4


@pytest.fixture
def run(tiny, tmp_path):
    """`run(*overrides)` -> result.json and the folder of a short training with both analyses."""

    def train(*overrides: str) -> tuple[dict, Path]:
        small = [f"model.name={tiny()}", "model.dtype=float32", "data.train.limit=40", "data.eval.limit=5"]
        small += [f"train.max_steps={STEPS}", f"train.eval_every={STEPS}", "train.device=cpu"]
        small += ["adapter.rank=4", "optimizer.lr=0.05", "analyse=[rank_losses, row_losses]"]
        loaded = load_recipe(SMOKE / "lora.yaml", [*small, *overrides])
        return lrft.train(loaded, tmp_path / "run", resume=False), tmp_path / "run"

    return train


def last(folder: Path) -> dict:
    return json.loads((folder / "metrics.jsonl").read_text().splitlines()[-1])


def loss_with(folder: Path, rank: int) -> float:
    """Held-out loss of a LoRA whose B is 0 from `rank` on, scored anew from the folder."""
    from lrft.data.eval_batches import eval_batches
    from lrft.evaluation.loss import held_out_loss

    recipe, text, adaptation = open_run(RunFolder(folder))
    for _, module in adapted(adaptation.model.hf):
        with torch.no_grad():
            module.adapter.B[:, rank:] = 0
    rows = text.held_out_encoded(recipe.eval.limit)
    return held_out_loss(adaptation.model, eval_batches(rows, recipe.eval.batch_tokens, text.pad_id)).loss


def test_a_lora_is_cut_off_and_put_back(run):
    result, folder = run()
    losses = result["analysis"]["rank_losses"]["loss"]
    assert list(losses) == ["1", "2", "3", "4"]
    assert losses["4"] == pytest.approx(last(folder)["eval_loss"], rel=1e-6)
    assert losses["2"] == pytest.approx(loss_with(folder, 2), rel=1e-6)
    assert len({round(value, 6) for value in losses.values()}) == 4
    saved = (folder / "adapter" / "adapter_model.safetensors").read_bytes()
    assert saved  # written after the analysis, from the whole adapter
    assert loss_with(folder, 4) == pytest.approx(losses["4"], rel=1e-6)


def test_a_nested_adapter_is_truncated_as_for_use(run):
    """With rank k its scale is alpha / k, so a cut is another function than B set to 0."""
    result, folder = run("adapter.method=dylora", "allocate=dylora")
    losses = result["analysis"]["rank_losses"]["loss"]
    assert losses["4"] == pytest.approx(last(folder)["eval_loss"], rel=1e-6)
    assert losses["1"] != pytest.approx(loss_with(folder, 1), rel=1e-7)


def test_an_adapter_that_others_hang_on_is_cut_off_in_place(run):
    """Of `sparselora` the adapters hold what watches all layers, of which nobody can make a copy."""
    result, folder = run(
        "adapter={method: sparselora, dense_first: 0, dense_last: 1, feed_forward: 0.5, attention: 0.5, dropout: 0}",
        "analyse=[gradient_gap, rank_losses]",
    )
    losses = result["analysis"]["rank_losses"]["loss"]
    assert losses["4"] == pytest.approx(last(folder)["eval_loss"], rel=1e-6)
    assert losses["2"] == pytest.approx(loss_with(folder, 2), rel=1e-6)


def test_rows_add_up_to_the_score(run):
    result, folder = run()
    rows = result["held_out_rows"]
    assert len(rows["loss"]) == len(rows["tokens"]) == 5
    assert sum(rows["loss"]) / sum(rows["tokens"]) == pytest.approx(last(folder)["eval_loss"], rel=1e-5)
    assert min(rows["tokens"]) > 0
