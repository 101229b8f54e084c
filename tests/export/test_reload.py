"""What trains beside an adapter comes back with it; every method alone is loaded back in tests/test_recipes.py."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from lrft.api.opening.open_run import open_run
from lrft.api.training.train import train
from lrft.export.merge import merge_into
from lrft.model.load import load_model
from lrft.recipe.load import load_recipe
from lrft.training.folder import RunFolder
from tests.export.reloaded import logits, pretrained

SMOKE = sorted((Path(__file__).parents[2] / "recipes" / "smoke").glob("[!_]*.yaml"))


def test_base_weights_trained_beside_an_adapter_go_along(on_tiny, tmp_path):
    from peft import PeftModel

    path = next(path for path in SMOKE if path.stem == "lora")
    small = [*on_tiny(path), "data.train.limit=30", "train.device=cpu", "optimizer.lr=0.01"]
    train(load_recipe(path, [*small, "trainable=[norm.weight]"]), tmp_path / "run", resume=False)
    recipe, _, adaptation = open_run(RunFolder(tmp_path / "run"))
    dense = load_model(recipe.model)
    dense.hf.set_attn_implementation("eager")
    peft = PeftModel.from_pretrained(dense.hf, tmp_path / "run" / "adapter").eval()
    ids = torch.randint(3, 400, (1, 12), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        torch.testing.assert_close(
            logits(adaptation.model, ids), peft(input_ids=ids).logits, atol=1e-3, rtol=1e-3
        )


@pytest.mark.parametrize("adapter", ["lora", "dora", "vera", "pissa", "nola"])
@pytest.mark.parametrize("patterns", ["['*.bias']", "['*.bias', norm.weight]"])
def test_biases_trained_beside_an_adapter_go_along(on_tiny, tiny, tmp_path, adapter, patterns):
    """In adapted layers and in others: PEFT computes what was trained, and so does the merged model."""
    from peft import PeftModel

    path = next(path for path in SMOKE if path.stem == adapter)
    base = tiny("llama", tied=False, bias=True)
    small = [
        *on_tiny(path),
        f"model={{name: {base}, dtype: float32}}",
        "data.train.limit=30",
        "train.device=cpu",
    ]
    small += ["optimizer.lr=0.05", "adapter.targets=[q_proj, down_proj]", f"trainable={patterns}"]
    train(load_recipe(path, small), tmp_path / "run", resume=False)
    recipe, _, adaptation = open_run(RunFolder(tmp_path / "run"))
    peft = PeftModel.from_pretrained(
        pretrained(recipe, adaptation.model), tmp_path / "run" / "adapter"
    ).eval()
    dense = load_model(recipe.model)
    merge_into(dense, adaptation.model, onto="dequantized", dtype=torch.float32)
    ids = torch.randint(3, 400, (1, 12), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        ours = logits(adaptation.model, ids)
        torch.testing.assert_close(ours, peft(input_ids=ids).logits, atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(ours, logits(dense, ids), atol=1e-4, rtol=1e-4)
    before = dict(load_model(recipe.model).hf.named_parameters())
    biases = [name for name in before if name.endswith(".bias")]
    assert biases and not any(before[name].equal(dense.hf.get_parameter(name)) for name in biases)
