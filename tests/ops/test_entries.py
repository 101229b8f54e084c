"""The product with a few entries beside a weight: what it costs, and what half precision keeps of them."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from lrft.methods.quant.none import Dense
from lrft.ops.entries import entries_linear
from lrft.ops.products import multiplying

OUT, WIDTH, TOKENS = 24, 16, 7


def given(dtype, share=0.1):
    torch.manual_seed(0)
    base = Dense(torch.randn(OUT, WIDTH).to(dtype), torch.randn(OUT).to(dtype))
    places = torch.randperm(OUT * WIDTH)[: int(share * OUT * WIDTH)].sort().values.int()
    values = torch.randn(len(places)).requires_grad_()
    return torch.randn(TOKENS, WIDTH).to(dtype).requires_grad_(), base, values, places


def through(x, base, values, places):
    return entries_linear(x, base, values, places, (OUT, WIDTH), x.dtype)


@pytest.mark.parametrize(("dtype", "products"), [(torch.float32, 3), (torch.bfloat16, 5)])
def test_in_float32_it_is_the_work_of_the_weight_alone(dtype, products):
    """Output, gradient of the input, and gradient of the weight, of which the entries are taken."""
    arguments = given(dtype)
    with FlopCounterMode(display=False) as counted:
        through(*arguments).square().sum().backward()
    assert counted.get_total_flops() == products * 2 * TOKENS * OUT * WIDTH


def test_the_sum_gives_the_gradients_of_a_dense_weight():
    x, base, values, places = given(torch.float32)
    z = x.detach().clone().requires_grad_()
    dense = base.weight().clone()
    dense.view(-1)[places.long()] += values.detach()
    dense.requires_grad_()
    seed = torch.randn(TOKENS, OUT)
    y, wanted = through(x, base, values, places), F.linear(z, dense, base.bias)
    torch.testing.assert_close(y, wanted, atol=1e-5, rtol=1e-5)
    (y * seed).sum().backward()
    (wanted * seed).sum().backward()
    torch.testing.assert_close(x.grad, z.grad, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(values.grad, dense.grad.flatten()[places.long()], atol=1e-5, rtol=1e-5)


def test_in_half_precision_updates_add_up_that_a_weight_in_place_would_round_away():
    """2^-12 beside weights of 1, whose neighbours in bfloat16 are 2^-7 and 2^-8 away."""
    _, _, _, places = given(torch.bfloat16)
    ones, values = torch.ones(OUT, WIDTH, dtype=torch.bfloat16), torch.full((len(places),), 2.0**-12)
    in_place = ones.clone()
    in_place.view(-1)[places.long()] += values.bfloat16()
    assert torch.equal(in_place, ones)
    x = torch.zeros(
        1, WIDTH, dtype=torch.bfloat16
    )  # of entries that cancel out, W x is 0 and S x all that there is
    x[0, 0], x[0, 1] = 1024, -1024
    moved = through(x, Dense(ones, None), values, places)
    S = torch.zeros(OUT * WIDTH).index_fill(0, places.long(), 2.0**-12).view(OUT, WIDTH)
    wanted = F.linear(x.float(), S)
    assert wanted.any()
    torch.testing.assert_close(moved.float(), wanted)


@pytest.mark.parametrize("share", [0.1, 0.0], ids=["some", "one"])
def test_where_half_precision_is_multiplied_in_float32_one_product_takes_the_sum(share):
    """It loses nothing there: nearer to the exact numbers than two products, and as many as in float32."""
    x, base, values, places = given(torch.bfloat16, max(share, 1.01 / (OUT * WIDTH)))
    x = torch.cat([x] * 8).detach().requires_grad_()
    exact = base.weight().double()
    exact.view(-1)[places.long()] += values.detach().double()
    seed = torch.randn(len(x), OUT).bfloat16()
    with multiplying((torch.bfloat16,)), FlopCounterMode(display=False) as counted:
        y = through(x, base, values, places)
        y.backward(seed)
    assert counted.get_total_flops() == 3 * 2 * len(x) * OUT * WIDTH
    wanted = x.detach().double() @ exact.mT + base.bias.double()
    torch.testing.assert_close(y.double(), wanted, atol=0.02, rtol=0.005)
    torch.testing.assert_close(x.grad.double(), seed.double() @ exact, atol=0.02, rtol=0.005)
    G = seed.double().mT @ x.detach().double()
    torch.testing.assert_close(values.grad.double(), G.flatten()[places.long()], atol=0.02, rtol=0.005)
