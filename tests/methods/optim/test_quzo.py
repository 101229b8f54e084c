"""QuZO: two roundings of one direction, each right on average, and weights that stay on their grid."""

import copy

import pytest
import torch
from torch import nn

from lrft.core.params import ParamInfo
from lrft.methods.optim._directions import seeded
from lrft.methods.optim.quzo import quantized, round_evenly, rounded
from lrft.recipe.load import load_recipe
from lrft.registry.axes import OPTIMIZERS
from lrft.registry.errors import RecipeError


def tensor(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def weights(dtype=torch.float32):
    kinds = {"w.weight": ((6, 8), "matrix"), "norm.weight": ((8,), "vector")}
    return [
        ParamInfo(name, nn.Parameter(tensor(*shape, seed=i).to(dtype)), role)
        for i, (name, (shape, role)) in enumerate(kinds.items())
    ]


def build(infos, method="quzo", draw=None, **settings):
    config = OPTIMIZERS.declared(method).config(method=method, **settings)
    return OPTIMIZERS.get(method).build(infos, config, draw)


def linear(infos, factor=1.0):
    slopes = [tensor(*info.param.shape, seed=40 + i) for i, info in enumerate(infos)]
    return lambda: factor * sum((s * i.param.float()).sum() for s, i in zip(slopes, infos, strict=True))


def values(infos):
    return [info.param.detach().clone() for info in infos]


def draws(bits, which, count, infos):
    draw = rounded(0, bits, which)
    return torch.stack([draw(infos[0].param, "w", step, 0) for step in range(count)])


def test_a_rounded_number_is_right_on_average_and_takes_few_values():
    u, generator = tensor(64), torch.Generator().manual_seed(1)
    found = torch.stack([quantized(u, 2, generator) for _ in range(2000)])
    unit = (u.max() - u.min()) / 3
    assert len(found.unique()) == 4 and (found - u).abs().max() < unit
    assert (found.mean(0) - u).abs().max() < 5 * 0.5 * unit / 2000**0.5
    assert round_evenly(torch.tensor([-2.0, 0.0, 3.0]), generator).tolist() == [-2.0, 0.0, 3.0]


def test_both_roundings_are_of_one_direction_and_differ():
    param = weights()[0].param
    u = seeded(0)(param, "w", 3, 1)
    first, second = (rounded(0, 4, which)(param, "w", 3, 1) for which in ("first", "second"))
    unit = (u.max() - u.min()) / 15
    assert not torch.equal(first, second)
    assert max((first - u).abs().max(), (second - u).abs().max()) < unit


def test_independent_roundings_add_no_variance_to_the_estimate_and_one_used_twice_does():
    """E[u2 u1] of a number is 1, that of the usual estimate; with u1 twice it is 1 + E[unit^2 f (1 - f)]."""
    infos = weights()
    first, second = (draws(2, which, 600, infos) for which in ("first", "second"))
    assert (first * second).mean() == pytest.approx(1.0, abs=0.04)
    assert (first * first).mean() > 1.15


def test_the_mean_of_many_estimates_is_the_gradient():
    infos = [ParamInfo("w.weight", nn.Parameter(tensor(2, 3)), "matrix")]
    before, slope = values(infos)[0], tensor(2, 3, seed=40)
    build(infos, lr=1.0, samples=250, perturb_bits=2).step(linear(infos))
    moved = before - infos[0].param.detach()
    assert torch.nn.functional.cosine_similarity(moved.flatten(), slope.flatten(), dim=0) > 0.95
    assert (moved * slope).sum() / slope.square().sum() == pytest.approx(1.0, abs=0.25)


def test_with_sixteen_bits_it_is_mezo():
    ours, theirs = weights(), weights()
    optimizer, mezo = (
        build(ours, lr=1e-3, perturb_bits=16, samples=2),
        build(theirs, "mezo", lr=1e-3, eps=1e-3, samples=2),
    )
    for _ in range(3):
        optimizer.step(linear(ours)), mezo.step(linear(theirs))
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one.param, other.param, rtol=1e-3, atol=1e-4)


def test_the_update_is_along_the_second_rounding_by_the_slope_of_the_first():
    infos = weights()[:1]
    before, slope = values(infos)[0], tensor(6, 8, seed=40)
    first, second = (rounded(0, 2, w)(infos[0].param, "w.weight", 0, 0) for w in ("first", "second"))
    build(infos, lr=0.01, perturb_bits=2).step(linear(infos))
    wanted = before - 0.01 * (slope * first).sum() * second
    torch.testing.assert_close(infos[0].param.data, wanted, rtol=1e-3, atol=1e-4)


def test_a_direction_comes_again_in_all_three_passes():
    infos, seen = weights(), {}
    optimizer = build(infos, restore="exact")
    usual = optimizer.draw

    def draw(param, name, step, sample):
        seen.setdefault((name, step), []).append(usual(param, name, step, sample))
        return seen[name, step][-1]

    optimizer.draw = draw
    for _ in range(2):
        optimizer.step(linear(infos))
    assert [len(d) for d in seen.values()] == [2, 2, 2, 2]
    assert all(torch.equal(*drawn) for drawn in seen.values())


@pytest.mark.parametrize("bits", [4, 8])
def test_weights_go_onto_a_grid_and_stay_there_step_after_step(bits):
    infos = weights()
    before = values(infos)
    optimizer = build(infos, lr=0.05, weight_bits=bits, restore="in_place", weight_decay=0.1)
    low, high = before[0].min(), before[0].max()
    unit = (high - low) / (2**bits - 1)
    for _ in range(5):
        optimizer.step(linear(infos))
        codes = (infos[0].param.detach() - low) / unit
        assert (codes - codes.round()).abs().max() < 1e-3
        assert codes.min() > -0.5 and codes.max() < 2**bits - 0.5
    assert not torch.equal(infos[1].param, before[1])
    assert list(optimizer.state) == [infos[0].param]


def test_a_step_far_below_the_grid_still_moves_weights_in_the_mean():
    """Rounding to nearest would leave every weight where it is."""
    infos = [ParamInfo("w.weight", nn.Parameter(tensor(100, 100)), "matrix")]
    optimizer = build(infos, lr=1.0, weight_bits=2)
    optimizer.step(lambda: torch.tensor(1.0))  # onto the grid alone
    start, ones = infos[0].param.detach().clone(), torch.ones(100, 100)
    optimizer.draw = optimizer.answer = lambda *at: ones.clone()
    optimizer.step(lambda: 1e-4 * infos[0].param.double().sum())  # slope 1: far above a unit, within the ends
    unit = optimizer.state[infos[0].param]["unit"]
    moved = start - infos[0].param.detach()
    inside = start > start.min() + unit
    assert len(moved[inside].div(unit).round().unique()) <= 2
    assert moved[inside].mean() == pytest.approx(1.0, rel=0.1)


def test_bfloat16_weights_keep_what_nearest_rounding_would_lose():
    infos = [ParamInfo("w.weight", nn.Parameter(torch.ones(100, 100, dtype=torch.bfloat16)), "matrix")]
    optimizer = build(infos, lr=1e-4, eps=0.5)
    optimizer.draw = optimizer.answer = lambda *at: torch.ones(100, 100)
    optimizer.step(lambda: infos[0].param.double().sum() / 1e4)
    assert infos[0].param.dtype == torch.bfloat16
    assert 1 - infos[0].param.detach().float().mean() == pytest.approx(1e-4, rel=0.3)


def test_it_resumes_on_its_grid_to_the_bit():
    infos, others = weights(), weights()
    optimizer, resumed = (build(part, lr=0.02, weight_bits=4) for part in (infos, others))
    for _ in range(2):
        optimizer.step(linear(infos))
    for own, other in zip(infos, others, strict=True):
        other.param.data.copy_(own.param.data)
    resumed.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    for _ in range(2):
        optimizer.step(linear(infos)), resumed.step(linear(others))
    assert all(torch.equal(a.param, b.param) for a, b in zip(infos, others, strict=True))


def test_a_grid_without_weights_is_refused_in_one_sentence():
    with pytest.raises(RecipeError, match=r"optimizer\.weight_bits: .* write trainable: full"):
        load_recipe("smoke/quzo", ["model.name=x/y", "optimizer.weight_bits=8"])
    with pytest.raises(ValueError, match="none of them trains"):
        build(weights()[1:], weight_bits=8)
    flat = ParamInfo("w.weight", nn.Parameter(torch.zeros(2, 2)), "matrix")
    with pytest.raises(ValueError, match=r"w\.weight is one number everywhere"):
        build([flat], weight_bits=8)
