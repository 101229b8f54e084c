"""Maps that read one tensor are computed together, and give what each gives by itself."""

from __future__ import annotations

import pytest
import torch

from lrft.build.adapt import adapt
from lrft.core import siblings
from lrft.core.adapted import adapted
from lrft.core.siblings import Siblings
from lrft.model.probe import batch_of
from lrft.recipe.load import load_recipe
from tests.test_step_costs import Calls

GROUPED = {
    "lora": ["adapter.dropout=0"],
    "lora, dropout": ["adapter.dropout=0.2"],
    "lora, dense": ["adapter.dropout=0.2", "quantization=none"],
    "lora, recomputed": ["adapter.dropout=0.2", "model.activation_checkpointing=true"],
    "rslora": ["adapter={method: lora, rank: 4, rslora: true}"],
    "ranks differ": ["adapter={method: lora, rank: 4, rank_pattern: {'k_proj': 2}}"],
    "lora_fa": ["adapter={method: lora_fa, rank: 4}"],
    "vera": ["adapter={method: vera, rank: 8}"],
    "miss": ["adapter={method: miss, rank: 4}"],
    "dora": ["adapter={method: dora, rank: 4}"],
    "dora, dropout": ["adapter={method: dora, rank: 4, dropout: 0.2}"],
    "dora, magnitudes of all": ["adapter={method: dora, rank: 4, dropout: 0.2, magnitude_only: [o_proj]}"],
    "dvora": ["adapter={method: dvora, rank: 4}"],
    "factors that are kept": ["adapter={method: nola, rank: 4, bases: 8}"],
}
ALONE = {
    "not low-rank": ["adapter={method: oft, block_size: 4}"],
    "a base less its start": ["init={method: pissa, residual: anchor}", "adapter.dropout=0"],
}


@pytest.fixture
def made(tiny):
    def make(overrides, family="llama"):
        given = [
            f"model.name={tiny(family)}",
            "train.device=cpu",
            "model.dtype=float32",
            "init.method=default",
        ]
        given += ["quantization=nf4_reference", *overrides]
        model = adapt(load_recipe("recipes/smoke/lora.yaml", given).recipe).model.train()
        torch.manual_seed(0)
        for _, site in adapted(model.hf):
            for parameter in site.adapter.parameters():
                parameter.data += 0.1 * torch.randn_like(parameter)
        return model

    return make


def passed(model):
    """Hidden states of two documents and the gradient of every trained tensor, with fixed draws."""
    torch.manual_seed(1)
    hidden = model.hidden(batch_of([[[5, 6, 7, 8, 9], [10, 11, 12]]]))
    loss = (hidden * torch.linspace(-1, 1, hidden.numel()).view_as(hidden)).sum()
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    grads = torch.autograd.grad(loss, list(trained.values()))
    return {"hidden": hidden.detach(), **dict(zip(trained, grads, strict=True))}


def groups(model):
    return {id(site.siblings): site.siblings for _, site in adapted(model.hf) if site.siblings is not None}


def counted(monkeypatch):
    """How many groups have been computed in one node, as a list that grows."""
    met = []
    multiply = siblings.multiply
    monkeypatch.setattr(siblings, "multiply", lambda *a: met.append(len(a[1])) or multiply(*a))
    return met


@pytest.mark.parametrize("case", GROUPED)
def test_together_they_give_what_each_gives_alone(made, monkeypatch, case):
    model = made(GROUPED[case])
    met = counted(monkeypatch)
    together = passed(model)
    passes = 2 if "recomputed" in case else 1
    assert met == [3, 2] * 2 * passes if passes == 1 else sorted(met) == [2, 2, 2, 2, 3, 3, 3, 3]
    for _, site in adapted(model.hf):
        site.siblings = None
    alone = passed(model)
    assert together.keys() == alone.keys() and len(alone) > 2
    for name, expected in alone.items():
        assert name == "hidden" or expected.abs().max() > 0, name
        torch.testing.assert_close(
            together[name], expected, rtol=1e-4, atol=1e-5, msg=lambda m, n=name: f"{n}: {m}"
        )


@pytest.mark.parametrize("case", ALONE)
def test_what_is_more_than_a_term_beside_its_base_is_computed_alone(made, monkeypatch, case):
    model = made(ALONE[case])
    met = counted(monkeypatch)
    together = passed(model)
    assert groups(model) and met == []
    for _, site in adapted(model.hf):
        site.siblings = None
    assert all(torch.equal(together[name], value) for name, value in passed(model).items())


def test_the_sites_of_a_layer_that_read_one_tensor_are_siblings(made):
    assert sorted(len(group) for group in groups(made([])).values()) == [2, 2, 3, 3]
    only = groups(made(["adapter.targets=[q_proj, v_proj, up_proj]"]))
    assert sorted(len(group) for group in only.values()) == [2, 2]
    assert groups(made([], family="gpt2")) == {}  # one map for queries, keys and values, and no gate


def test_without_gradients_or_in_evaluation_each_computes_for_itself(made, monkeypatch):
    model = made([])
    met = counted(monkeypatch)
    batch = batch_of([[[5, 6, 7]]])
    with torch.no_grad():
        model.hidden(batch)
    model.eval().hidden(batch)
    model.train()
    for _, site in adapted(model.hf):
        site.enabled = False
    model.hidden(batch)
    assert met == []


def test_a_sibling_that_is_given_another_tensor_computes_for_itself(made):
    model = made(["adapter.dropout=0"])
    layer = next(site for _, site in adapted(model.hf) if site.siblings is not None)
    first, second, *_ = layer.siblings._sites
    x = torch.randn(1, 4, first.base.in_features, requires_grad=True)
    first(x)
    other = x.detach() + 1
    given = second(other)
    second.siblings = None
    assert torch.equal(given, second(other))


def test_a_sibling_whose_input_was_written_to_computes_for_itself(made):
    model = made(["adapter.dropout=0"])
    layer = next(site for _, site in adapted(model.hf) if site.siblings is not None)
    first, second, *_ = layer.siblings._sites
    x = torch.randn(1, 4, first.base.in_features)
    first(x)
    x += 1
    given = second(x)
    second.siblings = None
    assert torch.equal(given, second(x))


def test_nothing_is_held_after_a_pass(made):
    model = made(["model.activation_checkpointing=true"])
    passed(model)
    assert all(isinstance(group, Siblings) and group._waiting is None for group in groups(model).values())


def test_calls_of_a_step_are_fewer(made):
    model = made(["adapter.dropout=0", "quantization=none"])
    with Calls() as together:
        passed(model)
    for _, site in adapted(model.hf):
        site.siblings = None
    with Calls() as alone:
        passed(model)
    assert (alone.total - together.total) == 39  # the norm's result is made again once, and not for each
