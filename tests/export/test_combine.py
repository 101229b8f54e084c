"""`lrft combine`: what it writes is a run, a start for others and an adapter of PEFT, which combines as it does."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest
import torch

from lrft.api.asking.evaluate import evaluate
from lrft.api.combining.combine import combine, combined
from lrft.api.combining.parents import aligned, read_parents
from lrft.api.combining.record import Settings
from lrft.api.merging.merge import merge
from lrft.api.opening.open_run import open_run
from lrft.api.training.recorded import extension
from lrft.api.training.train import train
from lrft.core.adapted import adapted
from lrft.export.pairs import Wanted
from lrft.model.load import load_model
from lrft.model.sites import linear_sites
from lrft.recipe.load import load_recipe
from lrft.registry.axes import COMBINATIONS
from lrft.registry.errors import NotMergeable, UsageError
from lrft.training.folder import RunFolder
from tests.export.reloaded import logits

SMOKE = Path(__file__).parents[2] / "recipes" / "smoke"
WEIGHTS = [0.7, -0.4]
PEFT = {
    "linear": ("linear", {}, {}),
    "cat": ("cat", {}, {}),
    "svd": ("svd", {}, {}),
    "ties": ("ties_svd", {"density": 0.5, "trim": "site"}, {"density": 0.5, "majority_sign_method": "total"}),
    "magnitude_prune": ("magnitude_prune_svd", {"density": 0.5}, {"density": 0.5}),
}


@pytest.fixture(scope="module")
def of_peft(tiny, tmp_path_factory):
    """Two folders that PEFT wrote, of one rank and two scales, the base with both in PEFT, and a recipe of the base."""
    from peft import LoraConfig, get_peft_model

    place = tmp_path_factory.mktemp("peft")
    recipe = load_recipe(
        SMOKE / "lora.yaml",
        [f"model={{name: {tiny()}, dtype: float32}}", "data.eval.limit=2", "train.device=cpu"],
    ).recipe
    base = load_model(recipe.model, sums=True)
    base.hf.set_attn_implementation("eager")
    modules = ["q_proj", "down_proj"]
    peft = get_peft_model(base.hf, LoraConfig(r=3, lora_alpha=6, target_modules=modules), "a")
    peft.add_adapter("b", LoraConfig(r=3, lora_alpha=1.5, target_modules=modules))
    draws = torch.Generator().manual_seed(0)
    for name, parameter in peft.named_parameters():
        if "lora_" in name:
            parameter.data = 0.2 * torch.randn(parameter.shape, generator=draws)
    peft.save_pretrained(place)
    return [place / "a", place / "b"], peft.eval(), recipe


@pytest.mark.parametrize("name", PEFT)
def test_peft_combines_its_own_adapters_to_the_same_change(of_peft, name):
    folders, peft, recipe = of_peft
    theirs, settings, arguments = PEFT[name]
    base = load_model(recipe.model, sums=True)
    made = COMBINATIONS.get(name)(COMBINATIONS.settings(name, **settings), WEIGHTS)
    sites = linear_sites(base)
    found = combined(made, aligned(read_parents(folders, recipe, base), sites), Wanted(rank=6))
    rank = {} if name in ("linear", "cat") else {"svd_rank": 6}
    peft.add_weighted_adapter(["a", "b"], WEIGHTS, name, combination_type=theirs, **rank, **arguments)
    modules = dict(peft.base_model.model.named_modules())
    assert len(found.pairs) == 4
    for site, pair in found.pairs.items():
        wanted = modules[site].get_delta_weight(name)
        torch.testing.assert_close(pair.dense(), wanted, atol=1e-5, rtol=1e-4)


def test_adapters_of_peft_need_a_recipe_and_what_is_written_is_one_of_peft(of_peft, tmp_path):
    from peft import PeftModel

    folders, peft, recipe = of_peft
    with pytest.raises(UsageError, match="--recipe: none of these is a run"):
        combine(folders, tmp_path / "out", "cat")
    path = tmp_path / "recipe.yaml"
    from lrft.recipe.resolved import resolved

    path.write_text(resolved(recipe))
    record = combine(folders, tmp_path / "out", "cat", Settings(weights=WEIGHTS, recipe=path))
    assert record["rank"] == 6 and record["exact_sites"] == 4 and record["kl_mean"] < 1e-7
    assert [parent["kind"] for parent in record["parents"]] == ["peft", "peft"]
    own, _, adaptation = open_run(RunFolder(tmp_path / "out"))
    dense = load_model(own.model)
    dense.hf.set_attn_implementation("eager")
    ids = torch.randint(3, 400, (1, 12), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        written = PeftModel.from_pretrained(dense.hf, tmp_path / "out").eval()(input_ids=ids).logits
        peft.add_weighted_adapter(["a", "b"], WEIGHTS, "sum", combination_type="cat")
        peft.set_adapter("sum")
        theirs = peft(input_ids=ids).logits
    torch.testing.assert_close(written, logits(adaptation.model, ids), atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(written, theirs, atol=1e-4, rtol=1e-4)


@pytest.mark.usefixtures("short_answers")
def test_a_combination_of_runs_is_a_run_that_is_scored_merged_and_begun_with(given_adapters, tiny, tmp_path):
    """Of different ranks; beside its parents each scores what `lrft eval` gives it."""
    runs, out = given_adapters(), tmp_path / "both"
    settings = Settings(weights=[1.0, 0.5], evaluate=True, curve=3)
    record = combine(runs, out, "cat", settings)
    assert json.loads((out / "fidelity.json").read_text())["scores"] == record["scores"]
    scores = {label: tasks["loss"]["loss"] for label, tasks in record["scores"].items()}
    assert list(scores) == ["base", "1-lora", "2-rslora", "combined"]
    assert evaluate(out, ["loss"])["adapter"]["loss"].metrics["loss"] == pytest.approx(scores["combined"])
    own = evaluate(runs[0], ["loss"], baseline=True)
    for label, kind in (("1-lora", "adapter"), ("base", "baseline")):
        assert own[kind]["loss"].metrics["loss"] == pytest.approx(scores[label], abs=1e-4)
    points = list(csv.DictReader((out / "curve.csv").open()))
    assert [float(point["alpha"]) for point in points] == [0.0, 0.5, 1.0]
    assert float(points[0]["loss"]) == pytest.approx(scores["1-lora"], abs=1e-4)
    assert (out / "curve.png").read_bytes()[1:4] == b"PNG"
    assert merge(out, tmp_path / "merged")["kl_mean"] < 1e-4
    assert train(out, resume=True)["step"] == 0  # it is complete
    with pytest.raises(UsageError, match="was combined and not trained; begin a new run with it"):
        train(out, resume=True, added=extension(2))
    small = [
        f"model={{name: {tiny()}, adapter: {out}}}",
        "adapter={method: lora, rank: 12}",
        "train.max_steps=1",
    ]
    small += ["data.train.limit=8", "data.eval.limit=4", "train.device=cpu"]
    train(load_recipe(SMOKE / "lora.yaml", small), tmp_path / "on")
    origin = json.loads((tmp_path / "on" / "run.json").read_text())["adapter"]
    assert origin["kind"] == "run" and origin["relative_error"] == 0 and "factors" in str(origin["sites"])


def test_adapters_whose_sites_share_a_part_are_combined_by_their_changes(tiny, tmp_path):
    """Loaded by PEFT on a fresh base it computes what the weighted changes of the merged models do."""
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    small = [f"model={{name: {tiny()}, dtype: float32}}", "data.train.limit=8", "data.eval.limit=2"]
    small += ["train.max_steps=2", "train.device=cpu", "optimizer.lr=0.05", "quantization=none"]
    merged = []
    for name in ("vera", "vblora"):
        train(load_recipe(SMOKE / f"{name}.yaml", small), tmp_path / name)
        merge(tmp_path / name, tmp_path / f"{name}-merged")
        merged.append(AutoModelForCausalLM.from_pretrained(tmp_path / f"{name}-merged", dtype=torch.float32))
    record = combine(
        [tmp_path / "vera", tmp_path / "vblora"], tmp_path / "out", "cat", Settings(weights=[2.0, -0.5])
    )
    assert record["relative_error"] < 1e-5 and record["kl_mean"] < 1e-6
    base, sums = (AutoModelForCausalLM.from_pretrained(tiny(), dtype=torch.float32) for _ in range(2))
    with torch.no_grad():
        parts = [dict(model.named_parameters()) for model in merged]
        for name, value in sums.named_parameters():
            old = value.clone()
            value += 2.0 * (parts[0][name] - old) - 0.5 * (parts[1][name] - old)
        ids = torch.randint(3, 400, (1, 12), generator=torch.Generator().manual_seed(0))
        bare = base(input_ids=ids).logits
        written = PeftModel.from_pretrained(base, tmp_path / "out").eval()(input_ids=ids).logits
        wanted = sums(input_ids=ids).logits
    torch.testing.assert_close(written, wanted, atol=1e-4, rtol=1e-4)
    assert (wanted - bare).abs().max() > 0.01


def test_a_cut_is_told_with_what_it_leaves_out(given_adapters, tmp_path, capsys):
    record = combine(given_adapters(), tmp_path / "small", "ties", Settings(rank=2))
    assert record["rank"] == 2 and 0 < record["relative_error"] < 1 and record["exact_sites"] == 0
    assert f"leaves out {record['relative_error']:.2%} of the change" in record["told"][-1]
    model = open_run(RunFolder(tmp_path / "small"))[2].model
    assert {module.adapter.A.shape[0] for _, module in adapted(model.hf)} == {2}


def test_what_cannot_be_combined_is_refused_before_anything_is_written(given_adapters, tmp_path):
    runs, out = given_adapters(), tmp_path / "out"
    for method, settings, said in (
        ("tiez", Settings(), "--method tiez: choose .*did you mean ties"),
        ("ties", Settings(set={"densty": 0.1}), "--set densty: ties has .*did you mean density"),
        ("ties", Settings(set={"density": 2.0}), "--set density: .*less than or equal to 1"),
        ("cat", Settings(weights=[1.0]), "--weights: 1 for 2 adapters"),
        ("lego", Settings(weights=[1.0, 1.0]), "--weights: lego has none"),
        ("cat", Settings(weights=[float("nan"), 1.0]), "--weights: nan, 1.0 are not all finite"),
        ("linear", Settings(), "--method linear: .*one rank"),
        ("cat", Settings(curve=1), "--curve: 1 point has no line"),
    ):
        with pytest.raises(UsageError, match=said):
            combine(runs, out, method, settings)
    with pytest.raises(UsageError, match="--method cat: takes 2 or more adapters, and here are 1"):
        combine(runs[:1], out, "cat")
    assert not out.exists()


def test_an_adapter_of_another_base_or_of_no_weight_is_refused(given_adapters, on_tiny, tiny, tmp_path):
    other = tiny("llama", tied=False)
    path = SMOKE / "lora.yaml"
    small = [
        f"model.name={other}",
        "data.train.limit=8",
        "data.eval.limit=2",
        "train.max_steps=1",
        "train.device=cpu",
    ]
    train(load_recipe(path, small), tmp_path / "other")
    with pytest.raises(UsageError, match="was trained on another base model"):
        combine([given_adapters()[0], tmp_path / "other"], tmp_path / "out", "cat")
    path = SMOKE / "prompt_tuning.yaml"
    train(load_recipe(path, [f"model.name={tiny()}", *small[1:]]), tmp_path / "prompt")
    with pytest.raises(NotMergeable):
        combine([given_adapters()[0], tmp_path / "prompt"], tmp_path / "out", "cat")
