"""What every registered adapter owes, on every registered storage. A new method is tested by being registered."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from lrft.core.adapted import Adapted, adapters_off
from lrft.core.axes import ADAPTERS, QUANTIZERS
from lrft.core.errors import NotMergeable
from lrft.core.frozen import FrozenLinear
from lrft.core.params import Site

SHAPES = [(48, 32, True), (32, 64, False)]  # out, in, bias
ALL = pytest.mark.parametrize("name", ADAPTERS.names())
STORAGES = pytest.mark.parametrize("storage", QUANTIZERS.names())


def make(name: str, storage: str = "none", shape=(48, 32, True), dtype=torch.float32, **settings) -> Adapted:
    out, width, bias = shape
    torch.manual_seed(1)
    weight, offset = torch.randn(out, width) / width**0.5, torch.randn(out) if bias else None
    declared = QUANTIZERS.declared(storage)
    base: FrozenLinear = QUANTIZERS.get(storage)(
        weight.to(dtype), None if offset is None else offset.to(dtype), declared.config(method=storage)
    )
    config = ADAPTERS.declared(name).config(method=name, **settings)
    adapter = ADAPTERS.get(name)(config, Site("a.b", width, out, has_bias=bias))
    adapter.start(base.weight())
    return Adapted(base, adapter)


def jiggle(site: Adapted, size: float = 0.1) -> None:
    torch.manual_seed(2)
    with torch.no_grad():
        for parameter in site.adapter.parameters():
            parameter.add_(size * torch.randn_like(parameter))


@ALL
@STORAGES
@pytest.mark.parametrize("shape", SHAPES)
def test_the_start_changes_nothing(name, storage, shape):
    site, x = make(name, storage, shape), torch.randn(5, shape[1])
    torch.testing.assert_close(site(x), site.base(x), atol=1e-5, rtol=1e-5)


@ALL
@STORAGES
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 3e-2)])
def test_forward_is_the_merged_weight(name, storage, shape, dtype, tolerance):
    """y = A(x, W) must be x (W + delta(W))^T + b for every mergeable adapter on every storage."""
    site, x = make(name, storage, shape, dtype), torch.randn(2, 5, shape[1]).to(dtype)
    jiggle(site)
    if "mergeable" not in site.adapter.provides:  # refusing well is also a contract
        with pytest.raises(NotMergeable):
            site.merged_weight()
        return
    bias = None if site.base.bias is None else site.base.bias.float()
    expected = F.linear(x.float(), site.merged_weight(), bias)
    got = site(x)
    assert got.dtype == dtype
    torch.testing.assert_close(
        got.float(), expected, atol=tolerance * float(expected.abs().max()), rtol=tolerance
    )


@ALL
@STORAGES
def test_gradients_are_those_of_the_formula(name, storage):
    """The fast path against autograd through `delta_weight`, for the input and every parameter."""
    fast, x = make(name, storage), torch.randn(7, 32, requires_grad=True)
    jiggle(fast)
    if "mergeable" not in fast.adapter.provides:
        return
    slow, seed = copy.deepcopy(fast), torch.randn(7, 48)
    (fast(x) * seed).sum().backward()
    z = x.detach().clone().requires_grad_(True)
    weight = slow.base.weight()
    (F.linear(z, weight + slow.adapter.delta_weight(weight), slow.base.bias) * seed).sum().backward()
    torch.testing.assert_close(x.grad, z.grad, atol=1e-4, rtol=1e-4)
    for (key, a), (_, b) in zip(
        fast.adapter.named_parameters(), slow.adapter.named_parameters(), strict=True
    ):
        assert a.grad is not None, key
        torch.testing.assert_close(a.grad, b.grad, atol=2e-4, rtol=1e-3, msg=lambda m, k=key: f"{k}: {m}")


@ALL
@STORAGES
def test_every_trainable_parameter_gets_a_gradient_and_no_base_one_does(name, storage):
    site = make(name, storage)
    jiggle(site)
    site(torch.randn(3, 32)).square().sum().backward()
    for key, parameter in site.adapter.named_parameters():
        assert not parameter.requires_grad or parameter.grad.abs().sum() > 0, key
    assert not [key for key, p in site.base.named_parameters() if p.requires_grad]


@ALL
def test_masters_are_float32_whatever_the_base(name):
    site = make(name, dtype=torch.bfloat16)
    assert {p.dtype for p in site.adapter.parameters()} == {torch.float32}


@ALL
def test_an_update_too_small_for_bfloat16_is_not_lost(name):
    """Sixteen steps of a sixteenth of a bfloat16 step move the function; in bfloat16 they would all vanish."""
    site, x = make(name, dtype=torch.bfloat16), torch.randn(64, 32).to(torch.bfloat16)
    jiggle(site)
    for parameter in site.adapter.parameters():
        rounded = parameter.to(torch.bfloat16)
        assert torch.equal((rounded + rounded.abs() * 2**-12), rounded)
    before = site(x)
    with torch.no_grad():
        for parameter in site.adapter.parameters():
            for _ in range(64):
                parameter.add_(parameter.abs() * 2**-12)
    assert (site(x) != before).any()


@ALL
@STORAGES
def test_folding_leaves_the_function_unchanged_up_to_the_storage(name, storage):
    site, x = make(name, storage), torch.randn(5, 32)
    jiggle(site, 0.01)
    if "mergeable" not in site.adapter.provides:
        return
    merged, bias = site.merged_weight(), site.base.bias
    site.fold()
    assert site.base.edited
    torch.testing.assert_close(site(x), site.base(x), atol=1e-5, rtol=1e-5)
    step = (site.base.weight() - merged).abs().max()
    assert step <= (1e-6 if storage == "none" else 0.3 * merged.abs().max())
    if storage == "none":
        torch.testing.assert_close(site(x), F.linear(x, merged, bias), atol=1e-5, rtol=1e-5)


@ALL
def test_state_round_trip(name):
    one, two = make(name), make(name)
    jiggle(one)
    two.adapter.load_state_dict(one.adapter.state_dict())
    x = torch.randn(4, 32)
    assert torch.equal(one(x), two(x))


@ALL
@pytest.mark.parametrize("shape", SHAPES)
def test_the_declared_count_is_the_counted_one(name, shape):
    site = make(name, shape=shape)
    counted = sum(p.numel() for p in site.adapter.parameters() if p.requires_grad)
    assert ADAPTERS.get(name).count(site.adapter.config, site.adapter.site) == counted


@ALL
@STORAGES
def test_rows_do_not_see_each_other(name, storage):
    site, x = make(name, storage), torch.randn(6, 32)
    jiggle(site)
    torch.testing.assert_close(site(x)[2:3], site(x[2:3]), atol=1e-5, rtol=1e-5)


@ALL
def test_evaluation_is_training_without_dropout(name):
    site, x = make(name), torch.randn(6, 32)
    jiggle(site)
    training = site(x)
    torch.testing.assert_close(site.eval()(x), training)


@ALL
def test_parameters_changed_between_two_evaluations_are_seen(name):
    site, x = make(name).eval(), torch.randn(6, 32)
    jiggle(site)
    with torch.no_grad():
        site(x)
    jiggle(site, 0.5)
    if "mergeable" in site.adapter.provides:
        bias = site.base.bias
        torch.testing.assert_close(site(x), F.linear(x, site.merged_weight(), bias), atol=1e-4, rtol=1e-4)


@ALL
def test_switched_off_it_is_the_base(name):
    site, x = make(name), torch.randn(3, 32)
    jiggle(site)
    model = nn.Sequential(site)
    with adapters_off(model):
        assert torch.equal(model(x), site.base(x))
    assert not torch.equal(model(x), site.base(x))


@ALL
def test_every_parameter_has_a_role(name):
    site = make(name)
    for key, parameter in site.adapter.named_parameters():
        assert not parameter.requires_grad or key in site.adapter.roles


@ALL
def test_names_for_peft_cover_the_state(name):
    site = make(name)
    if type(site.adapter).peft_config(site.adapter.config) is not None:
        assert set(site.adapter.peft_names) == set(site.adapter.state_dict())
