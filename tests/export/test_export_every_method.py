"""Every adapter that merges becomes plain LoRA that PEFT computes the run with; the registry says which there are."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from lrft.api.exporting.export import export
from lrft.api.exporting.form import Options
from lrft.api.opening.open_run import open_run
from lrft.api.training.train import train
from lrft.recipe.load import load_recipe
from lrft.registry.axes import ADAPTERS
from lrft.registry.errors import NotMergeable, UsageError
from lrft.training.folder import RunFolder
from tests.export.reloaded import logits, pretrained

SMOKE = Path(__file__).parents[2] / "recipes" / "smoke"
QUICK = "gated_lora"
IDS = torch.randint(3, 400, (1, 12), generator=torch.Generator().manual_seed(0))


def run_of(name: str, on_tiny, folder: Path) -> Path:
    path = SMOKE / f"{name}.yaml"
    small = [*on_tiny(path), "data.train.limit=20", "data.eval.limit=2", "train.device=cpu"]
    train(load_recipe(path, [*small, "model.dtype=float32"]), folder, resume=False)
    return folder


@pytest.mark.parametrize(
    "name", [n if n == QUICK else pytest.param(n, marks=pytest.mark.slow) for n in ADAPTERS.names()]
)
def test_an_adapter_is_plain_lora_or_says_that_it_cannot_be(on_tiny, tmp_path, name):
    from peft import PeftModel

    run = run_of(name, on_tiny, tmp_path / "run")
    provides = ADAPTERS.get(name).provides
    if "mergeable" not in provides or {"own_weights", "block_parameters"} & provides:
        with pytest.raises((NotMergeable, UsageError)):
            export(run, "lora", tmp_path / "out")
        assert not (tmp_path / "out").exists()
        return
    record = export(run, "lora", tmp_path / "out", Options(error=1e-4))
    recipe, _, adaptation = open_run(RunFolder(run))
    peft = PeftModel.from_pretrained(pretrained(recipe, adaptation.model), tmp_path / "out").eval()
    with torch.no_grad():
        theirs = peft(input_ids=IDS).logits
    torch.testing.assert_close(theirs, logits(adaptation.model, IDS), atol=1e-4, rtol=1e-4)
    assert record["relative_error"] <= 1.01e-4 and record["kl_mean"] < 1e-6
