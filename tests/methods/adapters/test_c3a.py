"""C3A's own statements, and PEFT's layer on the same numbers."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from lrft.core.adapted import Adapted
from lrft.core.params import Site
from lrft.methods.adapters.c3a import C3A
from lrft.methods.quant.none import Dense


def make(block_size=4, out=24, width=16, **settings):
    torch.manual_seed(0)
    weight = torch.randn(out, width)
    adapter = C3A(C3A.Config(method="c3a", block_size=block_size, **settings), Site("a", width, out))
    with torch.no_grad():
        adapter.w.normal_(std=16)
    return Adapted(Dense(weight), adapter), weight


def test_every_row_of_a_block_is_the_row_above_shifted_by_one():
    adapter = make()[0].adapter
    blocks = adapter.change().unflatten(0, (6, 4)).unflatten(2, (4, 4)).transpose(1, 2)  # (i, j, p, q)
    torch.testing.assert_close(blocks[:, :, 0], adapter.w / 16)
    torch.testing.assert_close(blocks[:, :, 1:], blocks[:, :, :-1].roll(1, dims=-1))
    assert torch.linalg.matrix_rank(adapter.change()) == 16


@pytest.mark.parametrize("block_size", [1, 2, 3, 6])
def test_transforms_multiply_as_the_formed_change_for_odd_and_even_blocks(block_size):
    adapter = make(block_size, out=18, width=12)[0].adapter
    x = torch.randn(2, 3, 12, requires_grad=True)
    z, seed = x.detach().clone().requires_grad_(True), torch.randn(2, 3, 18)
    (adapter.update(x) * seed).sum().backward()
    fast, adapter.w.grad = adapter.w.grad, None
    y = F.linear(z, adapter.change())
    (y * seed).sum().backward()
    torch.testing.assert_close(adapter.update(x), y, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(fast, adapter.w.grad, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(x.grad, z.grad, atol=1e-5, rtol=1e-5)


def test_a_block_of_1_is_a_trained_weight():
    adapter = make(block_size=1)[0].adapter
    torch.testing.assert_close(adapter.change(), adapter.w[..., 0] / 16)


def test_the_published_count_for_llama_3_2_3b():
    config = C3A.Config(method="c3a", block_size=64)
    assert 28 * sum(C3A.count(config, Site("a", 3072, out)) for out in (3072, 1024)) == 5_505_024


@pytest.mark.parametrize(
    ("start", "bound"),
    [("xavier", (6 / 40) ** 0.5), ("kaiming", 16**-0.5), ("gaussian", 4.0), ("zeros", 0.0)],
)
def test_starts_are_pefts_but_for_the_draw(start, bound):
    torch.manual_seed(0)
    adapter = C3A(C3A.Config(method="c3a", block_size=4, start=start), Site("a", 16, 24))
    assert bound / 2 <= adapter.w.abs().max() <= bound
    adapter.reset()
    assert not adapter.change().any()


def test_the_input_is_kept_in_its_own_precision_and_no_transform_and_no_matrix():
    adapter, kept = make(block_size=16, out=96, width=96)[0].adapter, []
    x = torch.randn(50, 96, dtype=torch.bfloat16)
    save = lambda t: kept.append((t.dtype, t.numel())) or t  # noqa: E731
    with torch.autograd.graph.saved_tensors_hooks(save, lambda t: t):
        adapter.update(x)
    assert (torch.bfloat16, 50 * 96) in kept
    assert sum(n for _, n in kept) <= 50 * 96 + 2 * adapter.w.numel()


def test_it_is_pefts(in_peft):
    site, weight = make()
    theirs = in_peft(site, weight, "C3AConfig")
    theirs.base_model.model[0].c3a_kernel["default"].data.copy_(site.adapter.w)
    x = torch.randn(5, 16)
    torch.testing.assert_close(site(x), theirs(x), atol=1e-5, rtol=1e-5)
    merged = theirs.merge_and_unload()[0].weight
    torch.testing.assert_close(site.merged_weight(), merged, atol=1e-5, rtol=1e-5)


def test_a_block_that_does_not_fit_is_refused_with_the_nearest_that_does():
    with pytest.raises(ValueError, match="block_size 5 does not divide 16 inputs and 24 outputs; use 4"):
        make(block_size=5)
