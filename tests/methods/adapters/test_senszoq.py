"""SensZOQ's own statements: exact entries beside a rounded rest, k that move, and MeZO where all of them do."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from lrft.core.less import start_of
from lrft.core.params import ParamInfo, Site
from lrft.core.stages import Evidence, SitePlan
from lrft.methods.adapters.senszoq import SensZOQ
from lrft.methods.inits.senszoq import SensZOQPlaces
from lrft.model.builder import SiteBuilder
from lrft.recipe.load import load_recipe
from lrft.registry.axes import OPTIMIZERS, QUANTIZERS

OUT, WIDTH = 24, 32


def storing(storage):
    config = QUANTIZERS.declared(storage).config(method=storage)
    return lambda weight, bias=None, **settings: QUANTIZERS.get(storage)(weight, bias, config)


def make(storage="nf4_reference", residual="rewrite", share=0.05):
    torch.manual_seed(0)
    weight, fisher = torch.randn(OUT, WIDTH) / WIDTH**0.5, torch.rand(OUT, WIDTH)
    part = SensZOQ(SensZOQ.Config(method="senszoq", share=share), Site("a", WIDTH, OUT))
    init = SensZOQPlaces(SensZOQPlaces.Config(method="senszoq", residual=residual))
    builder = SiteBuilder(storing(storage), init=init, signals={"a": {"fisher": fisher}}, saved=None)
    mask = fisher >= fisher.flatten().topk(len(part.places)).values[-1]
    return builder.adapt("a", part, weight, None, storing(storage)), weight, mask


def mezo(param, **settings):
    config = OPTIMIZERS.declared("mezo").config(method="mezo", **settings)
    return OPTIMIZERS.get("mezo").build([ParamInfo("w", param, "sparse")], config)


@pytest.mark.parametrize("storage", ["nf4_reference", "int8_reference"])
def test_at_step_0_the_entries_are_exact_and_the_rest_is_rounded_without_them(storage):
    site, weight, mask = make(storage)
    wanted = torch.where(mask, weight, storing(storage)(weight.masked_fill(mask, 0)).weight())
    torch.testing.assert_close(site.merged_weight(), wanted, atol=1e-7, rtol=1e-6)
    x = torch.randn(5, WIDTH)
    torch.testing.assert_close(site(x), x @ wanted.mT, atol=1e-5, rtol=1e-4)
    rounded = (wanted != weight) & ~mask
    assert rounded.sum() > 0.5 * (~mask).sum() and torch.equal(wanted[mask], weight[mask])


def test_k_entries_move_and_no_other():
    site, _, mask = make()
    before, optimizer = site.merged_weight().clone(), mezo(site.adapter.values, lr=0.01)
    x = torch.randn(9, WIDTH)
    for _ in range(2):
        optimizer.step(lambda: site(x).square().mean())
    moved = site.merged_weight() != before
    assert torch.equal(moved, mask) and mask.sum() == round(0.05 * OUT * WIDTH)
    assert not optimizer.state


def test_with_all_entries_on_a_dense_base_it_is_mezo_on_the_weight():
    site, weight, _ = make("none", share=1.0)
    dense = nn.Parameter(weight.clone())
    ours, theirs = mezo(site.adapter.values, lr=0.01), mezo(dense, lr=0.01)
    x = torch.randn(9, WIDTH)
    for _ in range(3):
        ours.step(lambda: site(x).square().mean())
        theirs.step(lambda: (x @ dense.mT).square().mean())
    torch.testing.assert_close(site.merged_weight(), dense.detach(), atol=1e-4, rtol=1e-3)
    assert (dense - weight).abs().max() > 0.01


def test_merged_onto_the_pretrained_weight_an_entry_counts_once():
    site, weight, mask = make()
    with torch.no_grad():
        site.adapter.values += 0.25
    torch.testing.assert_close(site.merged_weight(weight), weight + 0.25 * mask)


def test_without_rewrite_the_base_is_the_plain_rounded_one():
    site, weight, _ = make(residual=None)
    assert start_of(site.base).anchored
    torch.testing.assert_close(site.merged_weight(), storing("nf4_reference")(weight).weight())


def test_a_change_far_below_the_entries_survives_bfloat16_products():
    site, _, mask = make("none", residual="anchor")
    x = torch.randn(200, WIDTH, dtype=torch.bfloat16)
    with torch.no_grad():
        site.adapter.values += 1e-4
    nothing = storing("none")(torch.zeros(OUT, WIDTH, dtype=torch.bfloat16))
    found = site.adapter.forward_since(site.start, x, nothing).float()
    torch.testing.assert_close(found, x.float() @ (1e-4 * mask).mT, atol=1e-7, rtol=0.02)


def planned(scope, scores):
    config = SensZOQ.Config(method="senszoq", share=0.1)
    plan = {name: SitePlan(Site(name, s.shape[1], s.shape[0]), config) for name, s in scores.items()}
    init = SensZOQPlaces(SensZOQPlaces.Config(method="senszoq", scope=scope))
    evidence = Evidence({name: {"fisher": s} for name, s in scores.items()}, None, None)
    return init.plan(plan, evidence), init.foresee(plan)


def numbers(plan):
    return {n: e.config and SensZOQ.count(e.config, e.site) for n, e in plan.items()}


def test_entries_are_the_largest_of_all_weights_or_of_each():
    generator = torch.Generator().manual_seed(0)
    scale = {"a": 1.0, "b": 0.5, "c": 1e-3}
    scores = {name: f * torch.rand(10, 20, generator=generator) for name, f in scale.items()}
    found, foreseen = (numbers(plan) for plan in planned("model", scores))
    least = torch.cat([s.flatten() for s in scores.values()]).sort().values[-60]
    assert found == {n: int((s >= least).sum()) or None for n, s in scores.items()}
    assert found["c"] is None and sum(filter(None, found.values())) == sum(foreseen.values()) == 60
    assert numbers(planned("layer", scores)[0]) == {"a": 20, "b": 20, "c": 20}


def test_one_in_a_thousand_of_llama_2_7b():
    config = SensZOQ.Config(method="senszoq")
    square, wide = Site("q", 4096, 4096), Site("up", 4096, 11008)
    assert 32 * (4 * SensZOQ.count(config, square) + 3 * SensZOQ.count(config, wide)) == 6_476_000
    assert make()[0].adapter.places.dtype == torch.int32


def test_a_source_for_the_mask_is_measured_by_its_own_name(tmp_path):
    (tmp_path / "texts.jsonl").write_text('{"prompt": "a", "completion": "b"}\n')
    settings = ["model.name=x/y", f"init.source={tmp_path / 'texts.jsonl'}"]
    recipe = load_recipe("smoke/senszoq", settings).recipe
    init = SensZOQPlaces(recipe.init)
    assert init.needs == ("fisher@mask",) and init.objective == "cross_entropy"
    assert init.sources()["mask"].source.endswith("texts.jsonl")
    assert SensZOQPlaces(SensZOQPlaces.Config(method="senszoq")).needs == ("fisher",)
