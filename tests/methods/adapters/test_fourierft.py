"""FourierFT's own statements, and PEFT's places and layer on the same numbers."""

from __future__ import annotations

import math

import pytest
import torch
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from lrft.core.adapted import Adapted
from lrft.core.params import Site
from lrft.methods.adapters.fourierft import FourierFT
from lrft.methods.quant.none import Dense
from lrft.ops.products import multiplying


def make(frequencies=40, out=24, width=16, **settings):
    torch.manual_seed(0)
    weight = torch.randn(out, width)
    config = FourierFT.Config(method="fourierft", frequencies=frequencies, scale=30, **settings)
    return Adapted(Dense(weight), FourierFT(config, Site("a", width, out))), weight


def test_the_change_is_a_sum_of_plane_waves():
    adapter = make(frequencies=3)[0].adapter
    p, q = torch.arange(24)[:, None], torch.arange(16)
    expected = torch.zeros(24, 16)
    for c, j, k in zip(adapter.c, *adapter.places[0].at(adapter.site), strict=True):
        expected += 30 / (24 * 16) * c * torch.cos(2 * math.pi * (p * j / 24 + q * k / 16))
    torch.testing.assert_close(adapter.change(), expected, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize(("out", "width"), [(24, 16), (23, 16), (24, 15), (7, 9), (1, 6), (6, 1)])
def test_all_frequencies_of_odd_and_even_sides_multiply_as_the_formed_change(out, width):
    adapter = make(frequencies=out * width, out=out, width=width)[0].adapter
    x = torch.randn(2, 3, width, dtype=torch.float32, requires_grad=True)
    z, seed = x.detach().clone().requires_grad_(True), torch.randn(2, 3, out)
    (adapter.update(x) * seed).sum().backward()
    fast = adapter.c.grad.clone()
    adapter.c.grad = None
    (F.linear(z, adapter.change()) * seed).sum().backward()
    torch.testing.assert_close(adapter.update(x), F.linear(x, adapter.change()), atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(fast, adapter.c.grad, atol=1e-4, rtol=1e-3)
    torch.testing.assert_close(x.grad, z.grad, atol=1e-4, rtol=1e-4)


def test_more_coefficients_than_are_held_at_a_time():
    adapter = make(frequencies=1200, out=48, width=32)[0].adapter
    x = torch.randn(5, 32)
    torch.testing.assert_close(adapter.update(x), F.linear(x, adapter.change()), atol=1e-3, rtol=1e-4)


def test_no_matrix_is_kept_and_none_as_large_as_a_weight_is_formed():
    """x alone is kept, and of 200 x 300 entries no tensor has more than the transforms of 3 tokens."""
    site, _ = make(out=200, width=300)
    sizes, kept = [], []

    class Sizes(torch.overrides.TorchFunctionMode):
        def __torch_function__(self, function, types, args=(), kwargs=None):
            result = function(*args, **(kwargs or {}))
            sizes.append(result.numel() if isinstance(result, torch.Tensor) else 0)
            return result

    x = torch.randn(3, 300, dtype=torch.bfloat16)
    adapter, save = site.adapter, lambda t: kept.append((t.dtype, t.numel())) or t
    with torch.autograd.graph.saved_tensors_hooks(save, lambda t: t), Sizes():
        y = adapter.update(x)
    assert (torch.bfloat16, 900) in kept and sum(n for _, n in kept) <= 900 + 4 * 40
    with Sizes():
        y.float().sum().backward()
    assert len(sizes) > 20 and max(sizes) <= 3 * 302


@pytest.mark.parametrize("tokens", [3, 64])
def test_beside_many_tokens_in_float32_the_change_is_formed_and_gives_the_same(tokens):
    x, seed, found = torch.randn(tokens, 16), torch.randn(tokens, 24).bfloat16(), []
    for slow in ((torch.bfloat16,), ()):
        with multiplying(slow):
            site, weight = make(frequencies=12)
            site.base = Dense(weight.bfloat16())
            given = x.bfloat16().requires_grad_()
            with FlopCounterMode(display=False) as counted:
                y = site(given)
                y.backward(seed)
            products = counted.get_total_flops() / (2 * tokens * 24 * 16)
            assert products == (3 if slow and tokens == 64 else 2)
            found.append([y, given.grad, site.adapter.c.grad])
    for formed, transformed in zip(*found, strict=True):
        torch.testing.assert_close(formed.float(), transformed.float(), atol=0.1, rtol=0.03)


def test_places_are_those_of_the_seed_and_shared_by_sites_of_a_size():
    config = FourierFT.Config(method="fourierft", frequencies=9, seed=5)
    sites = {"a": Site("a", 16, 24), "b": Site("b", 24, 16), "c": Site("c", 8, 8)}
    shared = FourierFT.shared(config, sites, 0)
    assert {name: len(t) for name, t in shared.named_buffers()} == {"of_384": 9, "of_64": 9}
    one, two = (FourierFT.at(config, sites[name], shared) for name in "ab")
    assert one.places[0] is two.places[0] and one.state_dict().keys() == {"c"}
    other = FourierFT(config.model_copy(update={"seed": 6}), sites["a"])
    assert not torch.equal(other.places[0].of_384, shared.of_384)


@pytest.mark.parametrize(("frequencies", "published"), [(1000, 56_000), (5000, 280_000)])
def test_counts_are_pefts_for_llama_3_2_3b(frequencies, published):
    config = FourierFT.Config(method="fourierft", frequencies=frequencies)
    assert 28 * sum(FourierFT.count(config, Site("a", 3072, out)) for out in (3072, 1024)) == published


def test_a_start_at_zero_and_a_reset_change_nothing():
    assert not make(start="zeros")[0].adapter.change().any()
    adapter = make()[0].adapter
    assert 0.5 < adapter.c.std() < 1.5
    adapter.reset()
    assert not adapter.change().any()


def test_places_and_function_are_pefts(in_peft):
    site, weight = make(seed=42)
    theirs = in_peft(site, weight, "FourierFTConfig")
    layer = theirs.base_model.model[0]
    assert torch.equal(layer.indices["default"], torch.stack(site.adapter.places[0].at(site.adapter.site)))
    layer.fourierft_spectrum["default"].data.copy_(site.adapter.c)
    x = torch.randn(5, 16)
    torch.testing.assert_close(site(x), theirs(x), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(
        site.merged_weight(), theirs.merge_and_unload()[0].weight, atol=1e-5, rtol=1e-5
    )


def test_more_coefficients_than_the_weight_has_are_refused():
    with pytest.raises(ValueError, match="frequencies is 400, and the weight has 384; use at most that"):
        make(frequencies=400)
