"""ZeroQAT's own statements: smoothing that changes nothing, grids that follow the weights, and MeZO through them."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from lrft.core.adapted import Adapted
from lrft.core.params import ParamInfo, Site
from lrft.core.stages import Tokens
from lrft.methods.adapters.zeroqat import ZeroQAT
from lrft.methods.inits.smoothquant import SmoothQuant
from lrft.methods.optim.mezo import MeZO
from lrft.methods.quant.none import Dense
from lrft.methods.signals.input_max import InputMax
from lrft.recipe.load import load_recipe
from lrft.registry.errors import NotMergeable, RecipeError
from tests.each import each


def make(out=24, width=32, moved=True, **settings):
    torch.manual_seed(0)
    weight = torch.randn(out, width)
    adapter = ZeroQAT(ZeroQAT.Config(method="zeroqat", **settings), Site("a", width, out))
    adapter.a.copy_(torch.rand(width) * 20 + 0.1)
    if moved:
        with torch.no_grad():
            adapter.D.normal_(std=0.1)
    return Adapted(Dense(weight), adapter), weight


def by_hand(rows, bits=4):
    """Between the ends of each last dimension, of which 0 need not be one."""
    low, high = rows.amin(-1, keepdim=True), rows.amax(-1, keepdim=True)
    step = (high - low) / (2**bits - 1)
    zero = (-low / step).round()
    return (((rows / step).round() + zero).clamp(0, 2**bits - 1) - zero) * step


@each("settings", [{}, {"smoothing": None}, {"activation_bits": None}, {"group_size": 4}, {"smoothing": 0.8}])
def test_it_is_the_formula(settings):
    """Groups of 4 and the tokens here are on one side of 0 now and then."""
    site, weight = make(**settings)
    adapter, config, x = site.adapter, site.adapter.config, torch.randn(5, 32)
    x[1:3] = x[1:3].abs() * torch.tensor([[1.0], [-1.0]])
    V, t = weight + adapter.D.detach(), config.smoothing
    v = torch.ones(32) if t is None else adapter.a**t / weight.abs().amax(0) ** (1 - t)
    u = x / v
    if config.activation_bits:
        u = by_hand(u)
    groups = (V * v).unflatten(1, (-1, config.group_size or 32))
    assert config.group_size is None or (groups > 0).all(-1).any()
    torch.testing.assert_close(site(x), F.linear(u, by_hand(groups).flatten(1)))


def test_the_factors_stay_where_the_weight_moves():
    """They are those of the pretrained weight, so that both points of a step differ by z and the grids alone."""
    moved, still = (make(moved=False, activation_bits=None)[0] for _ in range(2))
    with torch.no_grad():
        moved.adapter.D[0, 0] = 50.0
    kept = [site.merged_weight()[1:] for site in (moved, still)]
    assert torch.equal(*kept)  # the other rows see nothing of the first one's number


def test_smoothing_alone_is_no_change():
    site, weight = make(bits=8, activation_bits=None, moved=False)
    assert (site.merged_weight() - weight).norm() < 0.02 * weight.norm()
    smoothed = site.adapter.smooth(weight)
    x = torch.randn(5, 32)
    torch.testing.assert_close(F.linear(x / smoothed, weight * smoothed), F.linear(x, weight))


def test_smoothing_makes_an_outlying_input_easier_to_round():
    x = torch.randn(50, 32)
    x[:, 3] *= 100
    errors = {}
    for smoothing in (None, 0.5):
        site, weight = make(smoothing=smoothing, bits=8, moved=False)
        site.adapter.a.copy_(x.abs().amax(0))
        errors[smoothing] = (site(x) - F.linear(x, weight)).norm()
    assert errors[0.5] < 0.7 * errors[None]


def test_the_grid_follows_the_weight():
    """A weight ten times as large is rounded on a grid ten times as wide: scales are never those of before."""
    site, weight = make(smoothing=None, activation_bits=None, moved=False)
    before = site.merged_weight()
    with torch.no_grad():
        site.adapter.D.copy_(9 * weight)
    torch.testing.assert_close(site.merged_weight(), 10 * before)


def test_a_step_of_mezo_goes_along_the_slope_between_the_two_rounded_models():
    site, _ = make(bits=8, activation_bits=8, moved=False)
    adapter, x, y = site.adapter, torch.randn(40, 32), torch.randn(40, 24)
    info = ParamInfo("a.D", adapter.D, "matrix", "a")
    optimizer = MeZO.build([info], MeZO.Config(method="mezo", lr=1e-4, eps=1e-2))
    seen = []

    def closure():
        seen.append((adapter.D.detach().clone(), F.mse_loss(site(x), y).double()))
        return seen[-1][1]

    optimizer.step(closure)
    (ahead, loss_ahead), (behind, loss_behind) = seen
    z = (ahead - behind) / 2e-2
    slope = float(loss_ahead - loss_behind) / 2e-2
    assert loss_ahead != loss_behind
    torch.testing.assert_close(adapter.D.detach(), -1e-4 * slope * z, atol=1e-8, rtol=1e-3)
    assert not optimizer.state  # no bytes of state


def test_the_restored_model_is_the_one_before():
    """Both grids follow from D alone, which MeZO brings back to the bit."""
    site, _ = make()
    x = torch.randn(4, 32)
    before = site(x)
    info = ParamInfo("a.D", site.adapter.D, "matrix", "a")
    MeZO.build([info], MeZO.Config(method="mezo", lr=1e-9)).step(lambda: site(x).square().sum() * 0)
    assert torch.equal(site(x), before)


def test_the_ranges_are_measured_and_saved():
    site, weight = make(moved=False)
    rows = torch.randn(30, 32)
    statistic = InputMax()
    for part in rows.split(10):
        statistic.update(part, None, Tokens(torch.arange(9), torch.arange(9)))
    init = SmoothQuant(SmoothQuant.Config(method="smoothquant"))
    init.apply(site.adapter, weight, {"input_max": statistic.result()}, Dense)
    kept = torch.cat([part[:9] for part in rows.split(10)])
    assert torch.equal(site.adapter.state_dict()["a"], kept.abs().amax(0))


def test_a_dead_input_and_a_dead_column_stay_finite():
    site, weight = make(moved=False)
    weight[:, 2] = 0
    site.base.write(weight)
    site.adapter.a[5] = 0
    assert site(torch.randn(4, 32)).isfinite().all()


def test_rounded_inputs_are_refused_in_a_merge():
    with pytest.raises(NotMergeable, match=r"zeroqat rounds the inputs of a, which .*activation_bits: null"):
        make()[0].merged_weight()


def test_gradients_and_ranges_that_are_not_there_are_refused():
    refused = {
        ("optimizer=adamw",): r"optimizer\.method: adamw asks for gradients",
        ("init=default",): r"init\.method: does not measure",
        ("adapter.smoothing=null",): r"adapter\.smoothing: null smooths nothing",
    }
    for changes, message in refused.items():
        with pytest.raises(RecipeError, match=message):
            load_recipe("smoke/zeroqat", ["model.name=x/y", *changes])
