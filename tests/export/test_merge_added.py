"""`lrft merge --add`: changes of one base add up, in any order, or are refused."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import load_file

from lrft.api.merging.added import add
from lrft.api.merging.merge import merge
from lrft.build.adapt import adapt
from lrft.core.adapted import adapted
from lrft.export.merge import merge_into
from lrft.model.load import load_model
from lrft.model.take_over import Trained
from lrft.model.trained import frozen_layers
from lrft.recipe.schema import Recipe
from lrft.registry.errors import NotMergeable, UsageError

SPARSE = {"method": "lt_sft", "share": 0.2}
Q, V, UP = (f"model.layers.0.{name}" for name in ("self_attn.q_proj", "self_attn.v_proj", "mlp.up_proj"))


def recipe(folder, seed=0, quantization="none", **adapter):
    written = {
        "model": {"name": str(folder), "dtype": "float32"},
        "adapter": adapter if "method" in adapter else {**SPARSE, **adapter},
        "init": "default" if "method" in adapter else "lt_sft",
        "quantization": quantization,
        "data": {"train": "x.jsonl", "format": "text"},
        "train": {"seed": seed},
    }
    return Recipe.model_validate(written)


def model_of(made):
    """The model of a recipe as if it had been trained, and the adapters of its sites."""
    model = adapt(made).model
    torch.manual_seed(made.train.seed)
    for _, module in adapted(model.hf):
        for parameter in module.adapter.parameters():
            torch.nn.init.normal_(parameter, std=0.1)
    return model, {name: Trained(module.adapter) for name, module in adapted(model.hf)}


def merged(made, model):
    dense = load_model(made.model)
    merge_into(dense, model, onto="dequantized", dtype=torch.float32)
    return {name: parameter.detach().clone() for name, parameter in dense.hf.named_parameters()}


@pytest.mark.parametrize("quantization", ["none", "nf4_reference"])
def test_two_sparse_differences_add_up_in_any_order_where_sites_are_shared_and_where_not(tiny, quantization):
    one = recipe(tiny(), 0, quantization, targets=[Q, V])
    two = recipe(tiny(), 1, quantization, targets=[V, UP])
    weights = {name: base.weight().clone() for name, base, _ in frozen_layers(adapt(one).model)}
    changes = [
        {name: part.adapter.change().detach() for name, part in model_of(made)[1].items()}
        for made in (one, two)
    ]
    sums = []
    for first, second in ((one, two), (two, one)):
        model, (_, others) = model_of(first)[0], model_of(second)
        add(model, others, "--add other")
        sums.append(merged(first, model))
    for name in (Q, V, UP):
        change = sum(part[name] for part in changes if name in part)
        for found in sums:
            torch.testing.assert_close(found[f"{name}.weight"], weights[name] + change, atol=1e-6, rtol=1e-5)
    assert (changes[0][V] * changes[1][V]).count_nonzero() > 0  # some entries are in both


def test_a_change_that_depends_on_the_weight_is_refused_on_either_side(tiny):
    sparse, hira = recipe(tiny(), targets=[Q]), recipe(tiny(), method="hira", rank=2, targets=[Q])
    for first, second in ((sparse, hira), (hira, sparse)):
        with pytest.raises(NotMergeable, match=r"--add x: the change of a hira depends on the weight"):
            add(model_of(first)[0], model_of(second)[1], "--add x")


def test_a_site_that_the_model_does_not_have_is_refused(tiny):
    model, given = model_of(recipe(tiny(), targets=[Q]))
    with pytest.raises(UsageError, match=r"--add x: changes elsewhere, which is no frozen layer"):
        add(model, {"elsewhere": given[Q]}, "--add x")


@pytest.mark.usefixtures("short_answers")
def test_two_runs_are_one_model_and_its_record_says_so(given_adapters, tmp_path):
    runs = given_adapters()
    records = [
        merge(one, tmp_path / name, add=[two]) for name, one, two in (("a", *runs), ("b", *runs[::-1]))
    ]
    assert records[0]["added"] == [runs[1]] and records[1]["added"] == [runs[0]]
    assert records[0]["kl_mean"] < 1e-5
    ours, theirs = (load_file(tmp_path / name / "model.safetensors") for name in "ab")
    for key, tensor in ours.items():
        torch.testing.assert_close(tensor, theirs[key], atol=1e-6, rtol=1e-5)
    assert "lora + rslora" in (tmp_path / "a" / "README.md").read_text()
    with pytest.raises(UsageError, match=r"--add: .*nothing"):
        merge(runs[0], tmp_path / "c", add=[tmp_path / "nothing"])
