"""`lrft export` of what scores or embeds whole texts: PEFT has it as it is, and plain LoRA with its error."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from lrft.api.asking.doctor import diagnose
from lrft.api.exporting.export import export
from lrft.api.exporting.form import Options
from lrft.api.opening.open_run import open_run
from lrft.api.training.train import train
from lrft.data.eval_batches import eval_batches
from lrft.export.scored import scores_of
from lrft.recipe.load import load_recipe
from lrft.registry.errors import UsageError
from lrft.training.folder import RunFolder
from tests.export.reloaded import pretrained

SMOKE = Path(__file__).parents[2] / "recipes" / "smoke"
TWO_STEPS = ["train.max_steps=2", "eval.at_end=false"]


@pytest.fixture(scope="module")
def run(on_tiny, tmp_path_factory):
    """`run(name, *overrides)` -> the folder of a finished run of a smoke recipe; the same one for the same words."""
    made: dict = {}

    def get(name: str, *overrides: str):
        if (name, overrides) not in made:
            folder = tmp_path_factory.mktemp("runs") / name
            tiny = on_tiny(SMOKE / f"{name}.yaml")
            train(load_recipe(SMOKE / f"{name}.yaml", [*tiny, *TWO_STEPS, *overrides]), folder)
            made[name, overrides] = folder
        return made[name, overrides]

    return get


def by_peft(folder, recipe, model, ids):
    """Logits of the classes that PEFT's classifier gives texts of one length."""
    from peft import PeftModel

    base = pretrained(recipe, model)
    base.config.pad_token_id = 0
    with torch.no_grad():
        return PeftModel.from_pretrained(base, folder).eval()(input_ids=ids).logits


@pytest.mark.parametrize("target", ["peft", "lora"])
@pytest.mark.parametrize("adapter", ["lora", "dora"])
def test_peft_gives_the_classes_that_the_run_gives(run, tmp_path, target, adapter):
    folder = run("classify", f"adapter={adapter}", "optimizer.lr=0.02")
    record = export(folder, target, tmp_path / "out")
    recipe, text, adaptation = open_run(RunFolder(folder), scores=True)
    [row] = text.held_out_encoded(1)
    [batch] = eval_batches([row], 8192, text.pad_id)
    ours = scores_of(adaptation.model, [batch]).scores
    theirs = by_peft(tmp_path / "out", recipe, adaptation.model, torch.tensor([row.input_ids]))
    torch.testing.assert_close(
        theirs, ours, atol=1e-2 if (target, adapter) == ("lora", "dora") else 1e-4, rtol=1e-4
    )
    assert record["labels"] == ["negative", "positive"] and "stops" not in record
    assert not (tmp_path / "out" / "generation_config.json").exists()
    if target == "lora":
        assert record["rows"] > 0 and record["kl_mean"] < 1e-3
        assert record["kl_mean"] > 0 or record["exact_sites"] == len(record["sites"])


def test_figures_are_of_the_factors_that_were_written(run, tmp_path):
    """Cut to one rank they lose the classes, which the record says."""
    folder = run("classify", "adapter=dora", "optimizer.lr=0.02")
    whole = export(folder, "lora", tmp_path / "whole", Options(error=1e-6, dtype="float32"))
    cut = export(folder, "lora", tmp_path / "cut", Options(rank=1, dtype="float32"))
    assert 0 <= whole["kl_mean"] < 1e-9 < 1e-6 < cut["kl_mean"]


def test_the_score_head_and_how_to_load_it_go_along(run, tmp_path):
    folder = run("reward")
    export(folder, "lora", tmp_path / "out")
    trained = load_file(folder / "adapter" / "adapter_model.safetensors")
    written = load_file(tmp_path / "out" / "adapter_model.safetensors")
    [name] = [name for name in written if "score" in name]
    assert torch.equal(written[name], trained[name])
    config = json.loads((tmp_path / "out" / "adapter_config.json").read_text())
    assert config["task_type"] == "SEQ_CLS" and config["modules_to_save"] == ["score"]
    found = diagnose(tmp_path / "out")
    assert all(check["passed"] for check in found["checks"])
    assert "AutoModelForSequenceClassification" in found["next"][0] and "num_labels=1" in found["next"][0]
    card = (tmp_path / "out" / "README.md").read_text()
    assert "pipeline_tag: text-classification" in card


def test_what_embeds_is_written_too(run, tmp_path):
    record = export(run("contrastive"), "lora", tmp_path / "out")
    assert record["cosine_min"] > 1 - 1e-5 and "stops" not in record
    assert "pipeline_tag: feature-extraction" in (tmp_path / "out" / "README.md").read_text()
    assert export(run("contrastive"), "peft", tmp_path / "same")["told"] == []


@pytest.mark.parametrize("target", ["vllm", "gguf", "ollama"])
@pytest.mark.parametrize("name", ["classify", "contrastive"])
def test_a_server_of_answers_takes_no_such_adapter(run, tmp_path, target, name):
    with pytest.raises(UsageError, match="lrft export --for peft"):
        export(run(name), target, tmp_path / "out")
    assert not (tmp_path / "out").exists()
