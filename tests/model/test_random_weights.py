"""`model.weights: random`: an architecture without weight files, the same for a seed wherever it is loaded."""

from __future__ import annotations

import json
import shutil
import signal
from pathlib import Path

import pytest
import torch

from lrft.api.asking.evaluate import evaluate
from lrft.api.merging.merge import merge
from lrft.api.opening.open_run import open_run
from lrft.api.training.train import train
from lrft.model.load import load_model
from lrft.model.tokenizer import load_tokenizer
from lrft.recipe.load import load_recipe
from lrft.recipe.sections import ModelSection
from lrft.registry.errors import CheckpointError, Interrupted, RecipeError, UsageError
from lrft.training.folder import RECIPE, RunFolder
from lrft.training.gradient_check import GradientCheck
from tests.older_run import as_older

DATA = Path(__file__).parents[2] / "recipes" / "data" / "quickstart"

RECIPE_TEXT = """
model: {{name: {config}, weights: random, tokenizer: {tokenizer}, dtype: {dtype}}}
{trains}
data:
  train: {{source: {data}/train.jsonl, limit: 30}}
  eval: {{source: {data}/test.jsonl, limit: 4}}
  format: {{method: prompt_completion, render: plain}}
train: {{max_steps: 4, batch_size: 2, max_length: 160, save_every: 2, eval_every: 4, device: cpu, seed: {seed}}}
eval: {{tasks: [loss]}}
"""
FULL = "trainable: full\noptimizer: {method: galore, rank: 8, update_every: 2, lr: 0.01}"
LORA = "adapter: {method: lora, rank: 4, alpha: 8}"


@pytest.fixture
def config(tiny, tmp_path) -> Path:
    """A folder with an architecture and neither weights nor a tokenizer."""
    folder = tmp_path / "config"
    folder.mkdir()
    shutil.copy(tiny() / "config.json", folder)
    return folder


@pytest.fixture
def recipe(config, tiny, tmp_path):
    def write(trains: str = FULL, seed: int = 3, dtype: str = "float32", tokenizer: Path | None = None):
        path = tmp_path / "recipe.yaml"
        path.write_text(
            RECIPE_TEXT.format(
                config="config",
                tokenizer=tokenizer or tiny(),
                trains=trains,
                data=DATA,
                seed=seed,
                dtype=dtype,
            )
        )
        return load_recipe(path)

    return write


def section(config: Path, **settings) -> ModelSection:
    return ModelSection(name=str(config), weights="random", **{"dtype": "float32", **settings})


def weights(model) -> dict[str, torch.Tensor]:
    return dict(model.hf.named_parameters())


def same(ours, theirs) -> bool:
    return all(torch.equal(tensor, theirs[name]) for name, tensor in ours.items())


def test_a_seed_gives_the_same_weights_and_another_seed_others(config):
    torch.manual_seed(1)
    first = load_model(section(config), seed=3)
    torch.manual_seed(2)
    again, other = load_model(section(config), seed=3), load_model(section(config), seed=4)
    assert same(weights(first), weights(again))
    assert first.fingerprint == again.fingerprint != other.fingerprint
    matrices = [name for name, tensor in weights(first).items() if tensor.ndim == 2]
    assert not any(torch.equal(weights(first)[name], weights(other)[name]) for name in matrices)


def test_drawing_weights_leaves_the_random_state_alone(config):
    before = torch.random.get_rng_state()
    load_model(section(config), seed=3)
    assert torch.equal(torch.random.get_rng_state(), before)


def test_lower_precision_is_the_same_draw_rounded(config):
    full, half = (
        load_model(section(config, dtype=dtype), seed=3).hf.state_dict() for dtype in ("float32", "bfloat16")
    )
    assert all(torch.equal(half[name], tensor.to(torch.bfloat16)) for name, tensor in full.items())


def test_rotary_frequencies_stay_exact_in_lower_precision(config):
    exact, low = (load_model(section(config, dtype=dtype), seed=3).hf for dtype in ("float32", "bfloat16"))
    frequencies = [dict(hf.named_buffers())["model.rotary_emb.inv_freq"] for hf in (exact, low)]
    assert frequencies[1].dtype == torch.float32
    assert torch.equal(*frequencies)


def test_tied_heads_stay_tied(config):
    hf = load_model(section(config, dtype="bfloat16"), seed=3).hf
    assert hf.get_output_embeddings().weight is hf.get_input_embeddings().weight


def test_random_weights_without_a_seed_are_our_own_mistake(config):
    with pytest.raises(AssertionError, match="seed of the run"):
        load_model(section(config))


def test_the_tokenizer_may_come_from_elsewhere(config, tiny):
    tokenizer, stops = load_tokenizer(section(config, tokenizer=str(tiny())))
    theirs, expected = load_tokenizer(ModelSection(name=str(tiny())))
    assert (tokenizer.get_vocab(), stops) == (theirs.get_vocab(), expected)


def test_a_tokenizer_that_is_not_there_is_named_by_its_key(config, tmp_path, recipe):
    with pytest.raises(RecipeError, match=r"model\.tokenizer: .*could not be loaded"):
        load_tokenizer(section(config, tokenizer=str(config)))
    with pytest.raises(RecipeError, match=r"model\.tokenizer: there is no folder"):
        recipe(tokenizer=tmp_path / "nowhere")


def test_paths_of_a_recipe_are_relative_to_it(recipe, config):
    assert recipe().recipe.model.name == str(config)


@pytest.mark.parametrize("trains", [FULL, LORA])
def test_a_stopped_run_goes_on_to_the_same_bytes(recipe, tmp_path, monkeypatch, trains):
    loaded = recipe(trains)
    train(loaded, tmp_path / "whole", resume=False)
    after_step = GradientCheck.after_step

    def stopped(self, run):
        after_step(self, run)
        if run.step == 2:
            signal.raise_signal(signal.SIGINT)

    with monkeypatch.context() as patch, pytest.raises(Interrupted):
        patch.setattr(GradientCheck, "after_step", stopped)
        train(loaded, tmp_path / "parts", resume=False)
    train(loaded, tmp_path / "parts", resume=True)
    whole, parts = (
        {p.name: p.read_bytes() for p in (tmp_path / run / "adapter").glob("*.safetensors")}
        for run in ("whole", "parts")
    )
    assert whole and whole == parts


@pytest.mark.parametrize("trains", [FULL, LORA])
def test_a_run_is_scored_and_merged_from_its_seed(recipe, tmp_path, trains):
    train(recipe(trains), tmp_path / "run", resume=False)
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    scored = evaluate(RunFolder(tmp_path / "run"), [], None, False, None)["adapter"]["loss"]
    assert scored.metrics["loss"] == pytest.approx(lines[-1]["eval_loss"], abs=1e-6)
    record = merge(RunFolder(tmp_path / "run"), tmp_path / "merged", None)
    assert record["kl_mean"] < 1e-6
    merged = load_model(ModelSection(name=str(tmp_path / "merged"), dtype="float32"))
    _, _, adaptation = open_run(RunFolder(tmp_path / "run"))
    assert set(merged.hf.state_dict()) >= {"model.norm.weight", "lm_head.weight"}
    if trains is FULL:
        ours = {name: tensor for name, tensor in weights(adaptation.model).items() if "norm" in name}
        assert ours and same(ours, weights(merged))


def test_a_merged_model_stops_at_the_ids_of_its_tokenizer(recipe, config, tiny, tmp_path):
    settings = json.loads((config / "config.json").read_text())
    (config / "config.json").write_text(json.dumps({**settings, "eos_token_id": 77}))
    train(recipe(), tmp_path / "run", resume=False)
    merge(RunFolder(tmp_path / "run"), tmp_path / "merged", None)
    assert (
        load_tokenizer(ModelSection(name=str(tmp_path / "merged")))[1]
        == load_tokenizer(ModelSection(name=str(tiny())))[1]
    )


def test_a_checkpoint_of_another_seed_is_refused(recipe, tmp_path):
    train(recipe(), tmp_path / "run", resume=False)
    with pytest.raises(UsageError, match=r"train\.seed: 3 -> 4"):
        train(recipe(seed=4), tmp_path / "run", resume=True)
    path = tmp_path / "run" / RECIPE
    as_older(path.parent)
    path.write_text(path.read_text().replace("seed: 3", "seed: 4"))
    with pytest.raises(CheckpointError, match="another base model"):
        open_run(RunFolder(tmp_path / "run"))


def test_what_a_run_changed_is_measured_from_the_weights_of_its_seed(recipe, tmp_path):
    train(recipe(f"{FULL}\nanalyse: [update_rank]"), tmp_path / "run", resume=False)
    ranks = json.loads((tmp_path / "run" / "result.json").read_text())["analysis"]["update_rank"]["rank"]
    # Two subspaces of rank 8 in four steps; the difference of two random starts would have the full 64.
    assert 0 < max(rank for site, rank in ranks.items() if "self_attn" in site) <= 16


def test_a_tokenizer_with_more_ids_than_the_model_is_refused_before_training(recipe, config, tmp_path):
    settings = json.loads((config / "config.json").read_text())
    (config / "config.json").write_text(json.dumps({**settings, "vocab_size": 100}))
    with pytest.raises(RecipeError, match=r"model\.tokenizer: training row 0 has token \d+, .* knows 100"):
        train(recipe(), tmp_path / "run", resume=False)
