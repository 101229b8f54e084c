"""`model.adapters`: adapters that stay, beneath one that trains; and the same switched and weighted in Python."""

from __future__ import annotations

import json

import pytest
import torch

from lrft.api.combining.switch import Adapters
from lrft.api.merging.merge import merge
from lrft.api.opening.open_run import open_run
from lrft.api.training.train import train
from lrft.build.adapt import adapt
from lrft.core.adapted import adapted
from lrft.core.batch import Batch
from lrft.recipe.load import load_recipe
from lrft.registry.errors import RecipeError, UsageError
from lrft.training.folder import RunFolder
from tests.training.unbroken import goes_on_unbroken

PLAIN = [
    "quantization=none",
    "model.dtype=float32",
    "train.max_steps=3",
    "train.save_every=1",
    "train.keep_last=9",
]
FAST = ["optimizer.lr=0.02", "~train.eval_every", "schedule=constant"]
IDS = torch.tensor([[5, 9, 2, 77, 31, 8]])


@pytest.fixture(scope="module")
def written(tiny_recipe, tmp_path_factory):
    path = tiny_recipe(tmp_path_factory.mktemp("recipe"))
    return lambda *overrides: load_recipe(path, [*PLAIN, *FAST, *overrides])


@pytest.fixture(scope="module")
def runs(written, tmp_path_factory):
    """A LoRA and a DoRA of one base."""
    folder = tmp_path_factory.mktemp("runs")
    train(written(), folder / "lora")
    train(written("adapter.method=dora", "adapter.rank=2", "train.seed=1"), folder / "dora")
    return folder


def logits(model):
    none = IDS.new_empty(0)
    model.eval()
    with torch.no_grad():
        return model(Batch(IDS, torch.arange(6)[None], ((0, 0, 6),), none, none))


def of_run(folder):
    return open_run(RunFolder(folder))[2].model


def changes(folder):
    return {name: module.change() for name, module in adapted(of_run(folder).hf)}


def test_a_training_begins_at_the_weighted_sum_whatever_its_own_method(written, runs):
    stacked = f"model.adapters=[{runs / 'lora'}, {{adapter: {runs / 'dora'}, weight: 0.5}}]"
    one, other = changes(runs / "lora"), changes(runs / "dora")
    for method in ("lora", "dora"):
        adaptation = adapt(written(stacked, f"adapter.method={method}").recipe)
        for name, module in adapted(adaptation.model.hf):
            wanted = module.base.original.weight() + one[name] + 0.5 * other[name]
            torch.testing.assert_close(module.merged_weight(), wanted, atol=1e-5, rtol=1e-5)
        assert [record["weight"] for record in adaptation.origin["stacked"]] == [1.0, 0.5]
        assert any("0.5 times dora" in line for line in adaptation.notes)
    alone = adapt(written(f"model.adapters=[{runs / 'lora'}]").recipe).model
    torch.testing.assert_close(logits(alone), logits(of_run(runs / "lora")), atol=1e-5, rtol=1e-5)


@pytest.mark.usefixtures("short_answers")
def test_a_run_on_top_needs_them_no_more_and_resumes_to_the_bit(written, runs, tmp_path):
    loaded = written(f"model.adapters=[{runs / 'lora'}]", "adapter.rank=2", "train.seed=3")
    train(loaded, tmp_path / "run")
    goes_on_unbroken(loaded, tmp_path / "run", 1, tmp_path / "resumed")
    record = json.loads((tmp_path / "run" / "run.json").read_text())["adapter"]["stacked"]
    assert record[0]["kind"] == "run" and record[0]["sha256"]
    below, above = changes(runs / "lora"), changes(tmp_path / "run")
    own = {name: module.adapter.change() for name, module in adapted(of_run(tmp_path / "run").hf)}
    for name in below:
        torch.testing.assert_close(above[name], below[name] + own[name], atol=1e-5, rtol=1e-5)
    assert merge(tmp_path / "run", tmp_path / "merged")["kl_mean"] < 1e-6
    config = json.loads((tmp_path / "run" / "adapter" / "adapter_config.json").read_text())
    assert config["r"] == 2 + 4  # PEFT gets the sum


def test_what_cannot_be_stacked_is_refused(written, runs, tmp_path):
    stacked = f"model.adapters=[{runs / 'lora'}]"
    with pytest.raises(RecipeError, match="prompt_tuning is no change of a weight"):
        written(stacked, "adapter={method: prompt_tuning}")
    with pytest.raises(RecipeError, match="pissa looks at the weights without them"):
        written(stacked, "init=pissa", "adapter.dropout=0")
    with pytest.raises(
        RecipeError, match=r"gps looks at the weights .* adapter: gps needs it; choose another"
    ):
        written(stacked, "adapter=gps", "init=gps")
    with pytest.raises(RecipeError, match=r"model\.adapters"):
        written(f"model.adapters=[{tmp_path / 'nowhere'}]")
    with pytest.raises(RecipeError, match="gets no adapter here"):
        adapt(written(stacked, "adapter.targets=[q_proj]").recipe)


def test_adapters_of_one_base_are_switched_and_weighted_in_python(runs):
    both = Adapters({"a": runs / "lora", "b": runs / "dora"})
    bare = logits(both.model)
    for name, run in (("a", "lora"), ("b", "dora")):
        with both.use(name) as model:
            torch.testing.assert_close(logits(model), logits(of_run(runs / run)), atol=1e-4, rtol=1e-4)
    with both.use({"a": 1.0, "b": 0.5}) as model:
        mixed = logits(model)
    with both.use({"a": 0.0}) as model:
        torch.testing.assert_close(logits(model), bare)
    assert torch.equal(logits(both.model), bare) and not torch.allclose(mixed, bare, atol=1e-3)
    with pytest.raises(UsageError, match="no adapter 'c' here"), both.use("c"):
        pass
