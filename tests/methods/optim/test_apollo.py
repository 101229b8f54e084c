"""APOLLO moves as the authors' code does with its projections; APOLLO-Mini is a setting of it."""

from functools import partial

import pytest
import torch

from lrft.core.params import ParamInfo
from lrft.methods.optim._projection import held, project
from lrft.registry.axes import OPTIMIZERS
from tests.methods.optim.moved import SHAPES, growth_of_norms, moved_apart, parameters, resumed, step

SETTINGS = {"rank": 4, "update_every": 4, "lr": 0.01}
MINI = {"rank": 1, "scale_type": "tensor", "scale": 128.0}


def build(infos, draw=None, **settings):
    config = OPTIMIZERS.declared("apollo").config(method="apollo", **{**SETTINGS, **settings})
    return OPTIMIZERS.get("apollo").build(infos, config, draw)


def trained(steps=10, dtype=torch.float32, draw=None, **settings):
    infos = parameters(dtype)
    optimizer = build(infos, draw, **settings)
    for t in range(steps):
        step(optimizer, [info.param for info in infos], t)
    return optimizer, [info.param.detach() for info in infos]


def authors_draw(name, refresh, shape):
    """Their numbers: the seed is the place in the list of parameters, and later ones follow from it."""
    from apollo_torch.random_projector import next_seed, stable_randn

    seed = 1 + list(SHAPES).index(name.partition(".")[0])
    for _ in range(refresh):
        seed = next_seed(seed)
    return stable_randn(shape, seed)


def authors(steps=10, limited=True, front=False, **low):
    apollo_torch = pytest.importorskip("apollo_torch")
    params = [info.param for info in parameters()]
    settings = {"rank": 4, "update_proj_gap": 4, "scale": 1.0, "proj_type": "std", "proj": "random", **low}
    settings.setdefault("scale_type", "channel")
    optimizer = apollo_torch.APOLLOAdamW(
        [{"params": params[:3], **settings}, {"params": params[3:]}],
        lr=0.01,
        weight_decay=0.1,
        disable_nl=not limited,
        scale_front=front,
    )
    for t in range(steps):
        step(optimizer, params, t)
    return [param.detach() for param in params]


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        ({}, {}),
        (MINI, MINI),
        (MINI, {**MINI, "front": True}),
        ({"keep_projection": False}, {}),
        ({"scale": 2.0, "projection": "svd"}, {"scale": 2.0, "proj": "svd"}),
        ({"gamma": None}, {"limited": False}),
    ],
    ids=["apollo", "mini", "mini_limited_after_scaling", "redrawn", "svd", "unlimited"],
)
def test_it_is_the_authors_code_step_for_step_through_two_refreshes(ours, theirs):
    expected = authors(**theirs)
    _, found = trained(draw=authors_draw, weight_decay=0.1, **ours)
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)


def test_without_a_scale_a_step_is_the_gradient_times_one_number_a_channel():
    optimizer, _ = trained(steps=1)
    for param, info in zip(optimizer.param_groups[0]["params"], parameters(), strict=False):
        factors = (info.param.detach() - param.detach()) / param.grad
        along = 0 if param.shape[0] < param.shape[1] else 1
        one = factors.median(dim=along, keepdim=True).values.expand_as(factors)
        torch.testing.assert_close(factors, one, rtol=2e-2, atol=1e-4)
        assert factors.median(dim=along).values.std() > 0


def test_mini_multiplies_a_tensors_gradient_by_one_number_and_keeps_one_row():
    optimizer, _ = trained(steps=1, **MINI)
    for param, info in zip(optimizer.param_groups[0]["params"], parameters(), strict=False):
        move = (info.param.detach() - param.detach()).flatten()
        grad = param.grad.flatten()
        assert torch.cosine_similarity(move, grad, dim=0) > 1 - 1e-5
        assert optimizer.state[param]["exp_avg"].numel() == max(param.shape)


def test_the_projection_keeps_lengths_in_the_mean():
    """Normal numbers of variance 1/r: E ||G P^T||^2 = ||G||^2."""
    infos = [ParamInfo("w", torch.nn.Parameter(torch.zeros(64, 48)), "matrix")]
    ratios = []
    for seed in range(40):
        optimizer = build(infos, seed=seed, rank=8)
        infos[0].param.grad = torch.randn(64, 48, generator=torch.Generator().manual_seed(seed))
        optimizer.step()
        low = project(infos[0].param.grad, held(optimizer.state[infos[0].param]))
        ratios.append((low.norm() / infos[0].param.grad.norm()).square())
    assert torch.stack(ratios).mean().item() == pytest.approx(1, abs=0.06)


def test_a_projection_drawn_again_changes_no_number_and_is_not_kept():
    (kept, one), (redrawn, two) = trained(), trained(keep_projection=False)
    assert all(torch.equal(a, b) for a, b in zip(one, two, strict=True))
    for optimizer, expected in ((kept, True), (redrawn, False)):
        params = optimizer.param_groups[0]["params"]
        assert all((held(optimizer.state[param]) is not None) == expected for param in params)


def test_the_update_grows_by_at_most_a_hundredth_a_step():
    infos = parameters()
    optimizer = build(infos)
    growth = growth_of_norms(optimizer, infos)
    assert (growth <= 1.01 * (1 + 1e-6)).all() and (growth > 1.0099).any()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize(
    "settings", [{}, MINI, {"keep_projection": False}, {"state_dtype": "float32"}], ids=str
)
def test_a_run_resumed_within_a_period_is_the_unbroken_one_bit_for_bit(settings, dtype):
    optimizer, _ = trained(steps=6, dtype=dtype, **settings)
    params = [param for group in optimizer.param_groups for param in group["params"]]
    twins = parameters(dtype)
    resumed(optimizer, params, twins, partial(build, **settings))
    assert all(torch.equal(a, twin.param) for a, twin in zip(params, twins, strict=True))
    kept = torch.float32 if settings.get("state_dtype") else dtype
    assert optimizer.state[params[0]]["exp_avg"].dtype == kept


def test_one_optimizer_a_parameter_is_the_same_as_one_for_all():
    _, together = trained()
    apart = moved_apart(build)
    assert all(torch.equal(a, b) for a, b in zip(together, apart, strict=True))


def test_an_svd_cannot_be_drawn_again():
    with pytest.raises(ValueError, match="keep_projection: false needs"):
        build(parameters(), projection="svd", keep_projection=False)
