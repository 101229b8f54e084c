"""NLS: which sites share a draw, that draws are even and a function of the step, and what is chosen in the end."""

from __future__ import annotations

import json
from collections import Counter

import pytest
import torch
from torch import nn

from lrft.core.adapted import Adapted
from lrft.core.params import ParamInfo, Site
from lrft.core.run import Run
from lrft.methods.allocate.nls import NLS
from lrft.registry.axes import ADAPTERS, QUANTIZERS
from lrft.registry.errors import RecipeError

NAMES = [
    f"layers.{layer}.{name}"
    for layer in (0, 1)
    for name in ("attn.q_proj", "attn.k_proj", "attn.o_proj", "mlp.up_proj", "mlp.down_proj")
]
STEPS = 24


class Model(nn.Module):
    """Sites of two layers, one after the other."""

    def __init__(self, adapter="elastic_lora", rank=6):
        super().__init__()
        torch.manual_seed(0)
        for name in NAMES:
            base = QUANTIZERS.get("none")(torch.randn(6, 6) / 3, None, QUANTIZERS.settings("none"))
            part = ADAPTERS.get(adapter)(ADAPTERS.settings(adapter, rank=rank), Site(name, 6, 6))
            *folders, last = name.split(".")
            at = self
            for folder in folders:
                if not hasattr(at, folder):
                    at.add_module(folder, nn.Module())
                at = getattr(at, folder)
            at.add_module(last, Adapted(base, part))

    def forward(self, x):
        for name in NAMES:
            x = torch.tanh(self.get_submodule(name)(x))
        return x


def make(seed=0, score=None, model=None, **settings):
    model = model or Model()
    infos = [ParamInfo(name, param, "lora_A") for name, param in model.named_parameters()]
    optimizer = torch.optim.AdamW([info.param for info in infos], lr=0.02, weight_decay=0.0)
    method = NLS(NLS.Config(method="nls", ranks=[6, 2, 4], **settings))
    run = Run(model, infos, optimizer, None, STEPS, seed=seed, callbacks=[method])
    run.score = None if score is None else lambda: score(run)
    run.fire("start")
    return run, method


def shown(run):
    return {site.adapter.site.name: int(site.adapter.mask.sum()) for _, site in run.adapted()}


def step(run, draws):
    run.seed_step()
    run.fire("before_step")
    draws.append(shown(run))
    generator = torch.Generator().manual_seed(run.step)
    x = torch.randn(8, 6, generator=generator)
    (run.model(x) - 0.5 * x).square().mean().backward()
    run.optimizer.step()
    run.step += 1
    run.fire("after_step")
    run.optimizer.zero_grad(set_to_none=True)


def trained(run, until=STEPS):
    draws = []
    while run.step < until:
        step(run, draws)
    if until == STEPS:
        run.fire("finish")
    return draws


def test_sites_of_a_group_share_a_draw_which_is_even_and_a_function_of_seed_and_step():
    run, method = make()
    draws = trained(run)
    assert len(method.groups) == 2 * 4  # queries and keys, up, down, and the output alone
    counts = Counter()
    for draw in draws:
        assert all(draw[f"layers.{at}.attn.q_proj"] == draw[f"layers.{at}.attn.k_proj"] for at in (0, 1))
        counts.update(draw.values())
    assert set(counts) == {2, 4, 6} and all(48 < count < 112 for count in counts.values())
    for one, other in (("attn.q_proj", "attn.o_proj"), ("mlp.up_proj", "mlp.down_proj")):
        assert any(draw[f"layers.0.{one}"] != draw[f"layers.0.{other}"] for draw in draws)
    assert any(draw["layers.0.mlp.up_proj"] != draw["layers.1.mlp.up_proj"] for draw in draws)
    assert trained(make()[0]) == draws and trained(make(seed=1)[0]) != draws


def test_hidden_components_have_no_gradient_and_the_middle_is_shown_between_steps():
    run, method = make()
    assert set(shown(run).values()) == {4}
    run.seed_step()
    run.fire("before_step")
    run.model(torch.ones(3, 6)).sum().backward()
    for _, site in run.adapted():
        live = int(site.adapter.mask.sum())
        assert not site.adapter.B.grad[:, live:].any() and site.adapter.B.grad[:, :live].any()
    run.step += 1
    run.fire("after_step")
    assert set(shown(run).values()) == {4} and method.state_dict()["ranks"] == shown(run)


@pytest.mark.parametrize(
    ("settings", "rank"), [({}, 4), ({"choose": "largest"}, 6), ({"choose": "heuristic"}, 4)]
)
def test_what_is_chosen_without_a_search_is_the_middle_of_the_list_or_its_end(settings, rank):
    """Element (n - 1) // 2 in descending order: 24 of the published 32, 24, 16."""
    run, _ = make(**settings)
    trained(run)
    assert set(run.summary["ranks"].values()) == {rank} and shown(run) == run.summary["ranks"]
    published = NLS(NLS.Config(method="nls"))
    published.groups = {"a": []}
    assert [published.ranks_of[place] for place in published.first().values()] == [24]


def test_hill_climbing_never_ends_above_the_heuristic_and_finds_what_one_group_after_the_other_improves():
    """The loss of a configuration is its distance from ranks that are two moves away at most."""
    wanted = {name: 2 if name.endswith("_proj") and "mlp" in name else 6 for name in NAMES}
    calls = []

    def score(run):
        calls.append(shown(run))
        return [(float(sum(abs(rank - wanted[site]) for site, rank in shown(run).items())), 2)]

    run, method = make(score=score, choose="hill_climbing", evaluations=80)
    trained(run)
    assert len(calls) == 81 and calls[0] == dict.fromkeys(NAMES, 4)
    assert shown(run) == run.summary["ranks"] == wanted
    assert run.summary["searched"] == {"heuristic": 10.0, "chosen": 0.0}
    few, _ = make(score=score, choose="hill_climbing", evaluations=3)
    trained(few)
    assert few.summary["searched"]["chosen"] <= 10.0
    assert json.loads(json.dumps(method.state_dict())) == method.state_dict()


def test_a_resumed_run_is_the_unbroken_one_to_the_bit():
    whole, _ = make(
        choose="hill_climbing", evaluations=4, score=lambda run: [(float(sum(shown(run).values())), 1)]
    )
    trained(whole)
    first, method = make()
    trained(first, 17)
    second, resumed = make(
        choose="hill_climbing", evaluations=4, score=lambda run: [(float(sum(shown(run).values())), 1)]
    )
    second.model.load_state_dict(first.model.state_dict())
    second.optimizer.load_state_dict(first.optimizer.state_dict())
    resumed.load_state_dict(json.loads(json.dumps(method.state_dict())))
    second.step = 17
    trained(second)
    assert second.summary == whole.summary
    pairs = zip(whole.model.state_dict().items(), second.model.state_dict().items(), strict=True)
    assert all(torch.equal(a, b) for (_, a), (_, b) in pairs)


def test_adapters_that_have_no_such_ranks_are_refused():
    for model in (Model("lora"), Model(rank=8)):
        with pytest.raises(
            RecipeError, match=r"allocate\.method: draws ranks up to 6, which .* does not have"
        ):
            make(model=model)
    with pytest.raises(ValueError, match="has a rank twice"):
        NLS.Config(method="nls", ranks=[4, 4])
