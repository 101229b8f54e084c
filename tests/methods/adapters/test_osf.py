"""OSF's own statements: PEFT's layer on the same numbers, and leading directions that stay whatever trains."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from lrft.core.adapted import Adapted
from lrft.core.params import Site
from lrft.core.settling import settle
from lrft.methods.adapters.osf import OSF
from lrft.methods.quant.none import Dense

SHAPES = pytest.mark.parametrize(("out", "width"), [(24, 16), (16, 24), (16, 16)])


def make(out=24, width=16, moved=True, dtype=torch.float32, **settings):
    torch.manual_seed(0)
    weight = torch.randn(out, width) / width**0.5
    adapter = OSF(OSF.Config(method="osf", **settings), Site("a", width, out))
    adapter.start(weight)
    if moved:
        with torch.no_grad():
            for parameter in adapter.parameters():
                parameter.add_(0.1 * torch.randn_like(parameter))
    return Adapted(Dense(weight.to(dtype)), adapter), weight


def kept(weight, k):
    """The leading k singular triples, found apart."""
    U, S, Vh = torch.linalg.svd(weight.double(), full_matrices=False)
    return U[:, :k], S[:k], Vh[:k]


def train(site, steps=6, project=True):
    optimizer = torch.optim.AdamW(site.adapter.parameters(), lr=0.02, weight_decay=0)
    for _ in range(steps):
        optimizer.zero_grad()
        site(torch.randn(12, site.adapter.site.in_features)).square().sum().backward()
        optimizer.step()
        settle([site.adapter] if project else [], optimizer)


@SHAPES
@pytest.mark.parametrize("moved", [True, False])
def test_it_is_pefts_with_its_gradients(out, width, moved):
    peft = pytest.importorskip("peft")
    site, weight = make(out, width, moved, keep=0.3)
    model = nn.Sequential(nn.Linear(width, out, bias=False))
    model[0].weight.data.copy_(weight)
    theirs = peft.get_peft_model(model, peft.OSFConfig(effective_rank=0.3, target_modules=["0"]))
    parts = theirs.base_model.model[0].osf_svd_params["default"]
    for name, own in site.adapter.named_parameters():
        assert parts[f"{name}_low"].shape == own.shape
        parts[f"{name}_low"].data.copy_(own.data)
    x = torch.randn(2, 5, width)
    torch.testing.assert_close(site(x), theirs(x), atol=1e-5, rtol=1e-5)
    for model_ in (site, theirs):
        model_(x).square().sum().backward()
    for name, own in site.adapter.named_parameters():
        torch.testing.assert_close(own.grad, parts[f"{name}_low"].grad, atol=1e-3, rtol=1e-4)
    merged = theirs.merge_and_unload()[0].weight
    torch.testing.assert_close(site.merged_weight(), merged, atol=1e-5, rtol=1e-5)


@SHAPES
def test_at_step_0_the_parts_are_those_of_the_weight(out, width):
    site, weight = make(out, width, moved=False)
    U, S, V = (part.float() for part in kept(weight, 8))
    adapter = site.adapter
    torch.testing.assert_close(U * S @ V + adapter.U * adapter.S @ adapter.V, weight, atol=1e-5, rtol=1e-5)
    assert torch.equal(site.merged_weight(), weight)


@SHAPES
def test_the_leading_directions_do_what_they_did_after_training_with_adam(out, width):
    """W' v and u W' along the kept directions are those of W, and their singular values among those of W'."""
    site, weight = make(out, width, moved=False)
    train(site)
    U, S, V = kept(weight, 8)
    trained = site.merged_weight().detach().double()
    torch.testing.assert_close(trained @ V.mT, U * S, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(U.mT @ trained, S[:, None] * V, atol=1e-5, rtol=1e-5)
    assert (trained - weight).norm() > 0.1 * weight.norm()


def test_without_the_second_projection_adam_leaves_the_subspace():
    site, weight = make(moved=False)
    train(site, project=False)
    U, S, V = kept(weight, 8)
    assert (site.merged_weight().double() @ V.mT - U * S).abs().max() > 0.01


def test_a_part_at_rate_zero_is_not_projected():
    site, _ = make()
    before = site.adapter.U.detach().clone()
    site.adapter.settle({site.adapter.U: 0.0})
    assert torch.equal(site.adapter.U, before)
    site.adapter.settle({site.adapter.U: 0.1})
    assert not torch.equal(site.adapter.U, before)


def test_a_change_far_below_the_weight_survives_bfloat16_products():
    site, _ = make(64, 48, moved=False)
    with torch.no_grad():
        site.adapter.S.add_(1e-4)
    x = torch.randn(50, 48, dtype=torch.bfloat16)
    exact = x.float() @ site.adapter.change().mT
    assert (site.adapter.update(x).float() - exact).norm() < 0.02 * exact.norm()


def test_exported_as_a_plain_lora_it_is_the_whole_change():
    site, weight = make()
    tensors, keys = site.adapter.peft.tensors_of(site.adapter), site.adapter.peft.keys_of(site.adapter)
    assert keys["r"] == keys["lora_alpha"] == 16 == len(tensors["lora_A.weight"])
    change = tensors["lora_B.weight"] @ tensors["lora_A.weight"]
    torch.testing.assert_close(weight + change, site.merged_weight(), atol=1e-5, rtol=1e-5)


def test_a_pass_keeps_its_input_two_r_numbers_a_token_and_no_factor():
    site, x = make()[0], torch.randn(3, 16, requires_grad=True)
    saved = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t):
        F.relu(site(x)).sum()
    held = {t.data_ptr() for t in (x, *site.adapter.parameters(), *site.adapter.buffers())}
    held |= {site.base.weight().data_ptr()}
    beside = sum(t.numel() for t in saved if t.data_ptr() not in held)
    assert beside <= 3 * 2 * 8 + 3 * 24  # and what the relu keeps


def test_a_second_start_keeps_the_first_directions():
    site, weight = make()
    before = {name: buffer.clone() for name, buffer in site.adapter.named_buffers()}
    site.adapter.start(2 * weight)
    assert all(torch.equal(buffer, before[name]) for name, buffer in site.adapter.named_buffers())


def test_of_the_longer_side_alone_the_kept_directions_are_held():
    sizes = {shape: make(*shape)[0].adapter for shape in [(24, 16), (16, 24), (16, 16)]}
    held = {shape: (a.U_h.numel(), a.V_h.numel()) for shape, a in sizes.items()}
    assert held == {(24, 16): (24 * 8, 0), (16, 24): (0, 8 * 24), (16, 16): (0, 0)}


def test_128_directions_of_every_linear_layer_of_llama_3_2_3b_have_the_published_count():
    config = OSF.Config(method="osf", directions=128)
    shapes = [(3072, 3072)] * 2 + [(1024, 3072)] * 2 + [(8192, 3072)] * 2 + [(3072, 8192)]
    sites = [Site("a", width, out) for out, width in shapes]
    assert 28 * sum(OSF.count(config, site) for site in sites) == 194_535_936


def test_what_would_leave_nothing_to_keep_is_refused_in_one_sentence():
    with pytest.raises(
        ValueError, match=r"16 directions of 16 would train and none rest; .* train 15 at most"
    ):
        make(directions=16)
    with pytest.raises(ValueError, match="2 directions of 2 would train"):
        make(3, 2, keep=0.4)
