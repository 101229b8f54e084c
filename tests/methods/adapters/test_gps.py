"""GPS's own statements, its few entries as a masked weight, and the choice of its init."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from lrft.build.measure import measure
from lrft.core.adapted import Adapted
from lrft.core.params import Site
from lrft.methods.adapters.gps import GPS
from lrft.methods.inits.gps import GPSPlaces
from lrft.methods.quant.none import Dense
from lrft.model.load import load_model
from lrft.model.sites import linear_sites
from lrft.ops import entries
from lrft.recipe.load import load_recipe
from lrft.registry.errors import RecipeError

OUT, WIDTH = 24, 16


def make(per_row=2, gradient=None):
    torch.manual_seed(0)
    weight = torch.randn(OUT, WIDTH) / WIDTH**0.5
    adapter = GPS(GPS.Config(method="gps", per_row=per_row), Site("a", WIDTH, OUT))
    gradient = torch.randn(OUT, WIDTH) if gradient is None else gradient
    GPSPlaces(GPSPlaces.Config(method="gps")).apply(adapter, weight, {"grad": gradient}, None)
    return Adapted(Dense(weight), adapter), weight, gradient


@pytest.mark.parametrize("per_row", [1, 3, WIDTH])
def test_every_row_has_as_many_places_those_of_its_largest_gradients(per_row):
    site, _, gradient = make(per_row)
    mask = torch.zeros(OUT * WIDTH).index_fill(0, site.adapter.places.long(), 1).view(OUT, WIDTH)
    assert (mask.sum(1) == per_row).all()
    inside = gradient.abs().masked_fill(mask == 0, torch.inf).amin(1)
    outside = gradient.abs().masked_fill(mask == 1, 0).amax(1)
    assert (inside > outside).all()


def test_a_factor_on_the_loss_changes_nothing_and_ties_leave_the_count():
    site, _, gradient = make()
    assert torch.equal(make(gradient=1e-4 * gradient)[0].adapter.places, site.adapter.places)
    places = make(3, torch.ones(OUT, WIDTH))[0].adapter.places
    assert len(set(places.tolist())) == 3 * OUT and (places // WIDTH).bincount().tolist() == [3] * OUT


@pytest.mark.parametrize("rare", [1, 10**9])
def test_a_masked_weight_trained_by_adam_ends_where_the_entries_do(monkeypatch, rare):
    """Products entry by entry and with S formed: both are the dense gradient, masked, step after step."""
    monkeypatch.setattr(entries, "RARE", rare)
    site, weight, _ = make()
    mask = torch.zeros(OUT * WIDTH).index_fill(0, site.adapter.places.long(), 1).view(OUT, WIDTH)
    dense = weight.clone().requires_grad_(True)
    ours = torch.optim.AdamW(site.adapter.parameters(), lr=0.1, weight_decay=0)
    theirs = torch.optim.AdamW([dense], lr=0.1, weight_decay=0)
    for _ in range(4):
        x = torch.randn(9, WIDTH)
        z = x.clone().requires_grad_(True)
        x.requires_grad_(True)
        site(x).square().sum().backward()
        F.linear(z, dense).square().sum().backward()
        torch.testing.assert_close(x.grad, z.grad, atol=1e-4, rtol=1e-4)
        dense.grad *= mask
        for optimizer in (ours, theirs):
            optimizer.step()
            optimizer.zero_grad()
    merged = site.merged_weight()
    torch.testing.assert_close(merged, dense.detach(), atol=1e-4, rtol=1e-4)
    assert torch.equal(merged[mask == 0], weight[mask == 0])


def test_decay_and_momentum_leave_what_has_no_place_to_the_last_bit():
    site, weight, _ = make()
    optimizer = torch.optim.AdamW(site.adapter.parameters(), lr=0.1, weight_decay=0.5)
    for _ in range(3):
        optimizer.zero_grad()
        site(torch.randn(8, WIDTH)).square().sum().backward()
        optimizer.step()
    still = torch.ones(OUT * WIDTH).index_fill(0, site.adapter.places.long(), 0).view(OUT, WIDTH) == 1
    assert torch.equal(site.merged_weight()[still], weight[still])
    assert (site.merged_weight() != weight).sum() == 2 * OUT


@pytest.mark.parametrize("rare", [1, 10**9])
def test_nothing_as_large_as_the_weight_is_kept_for_the_backward_pass(monkeypatch, rare):
    monkeypatch.setattr(entries, "RARE", rare)
    site, _, _ = make(1)
    kept, x = [], torch.randn(3, WIDTH, requires_grad=True)
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        site(x)
    held = {t.data_ptr() for t in (x, *site.adapter.parameters(), *site.adapter.buffers())}
    assert {t.data_ptr() for t in kept} <= held and len(kept) == 3


def test_one_of_4096_inputs_is_the_share_of_the_paper():
    config = GPS.Config(method="gps")
    assert GPS.count(config, Site("q", 4096, 4096)) / 4096**2 == pytest.approx(0.00024, abs=1e-5)
    with pytest.raises(ValueError, match="per_row 17 is more than the 16 inputs; use fewer"):
        make(17)


def test_what_the_paper_trains_is_counted_places_and_biases_of_linear_layers(tiny):
    """On a model with biases in queries, keys and values; the norms, which have none to train, stay frozen."""
    settings = [f"model.name={tiny('qwen2')}", "adapter.per_row=2", "trainable=['*_proj.bias']"]
    recipe = load_recipe("smoke/gps", settings).recipe
    sites = linear_sites(load_model(recipe.model, meta=True)).values()
    numbers = sum(2 * site.out_features + site.out_features * site.has_bias for site in sites)
    assert any(site.has_bias for site in sites) and not all(site.has_bias for site in sites)
    assert measure(recipe, optimizer=False)["trainable"] == numbers


def test_another_init_is_refused_in_one_sentence():
    with pytest.raises(RecipeError, match=r"init\.method: .* write init: gps"):
        load_recipe("smoke/gps", ["model.name=x/y", "init=smt"])
