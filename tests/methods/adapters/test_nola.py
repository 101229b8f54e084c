"""NOLA's own statements; the random numbers themselves; the formula with every matrix held in memory."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from lrft.core.adapted import Adapted
from lrft.core.params import Site
from lrft.methods.adapters import nola
from lrft.methods.adapters.nola import NOLA, combination, uniform
from lrft.methods.quant.none import Dense


def make(rank=4, out=24, width=16, bases=6, name="a"):
    torch.manual_seed(0)
    weight = torch.randn(out, width) / width**0.5
    adapter = NOLA(NOLA.Config(method="nola", rank=rank, bases=bases), Site(name, width, out))
    with torch.no_grad():
        adapter.a.normal_()
        adapter.b.normal_()
    return Adapted(Dense(weight), adapter), weight


def matrices(adapter):
    """A0 (r, in), M (k, r, in) and N (k, out, r), all in memory."""
    (r, width), (out, _), k = adapter.A_shape, adapter.B_shape, adapter.config.bases
    seed = int(adapter.seed)
    offset = uniform(0, r * width, seed).view(r, width) / width**0.5
    M = uniform(0, k * r * width, seed + 1).view(k, r, width) / k**0.5
    N = uniform(0, k * out * r, seed + 2).view(k, out, r) / k**0.5
    return offset, M, N


@pytest.mark.parametrize("chunk", [1, 150, 2**22])
def test_factors_and_gradients_are_those_of_matrices_held_in_memory(monkeypatch, chunk):
    monkeypatch.setattr(nola, "CHUNK", chunk)
    site, weight = make()
    offset, M, N = matrices(site.adapter)
    a, b = (p.detach().clone().requires_grad_() for p in (site.adapter.a, site.adapter.b))
    x, seed = torch.randn(5, 16), torch.randn(5, 24)
    A, B = offset + torch.einsum("k,kri->ri", a, M), torch.einsum("k,kor->or", b, N)
    y = F.linear(x, weight) + F.linear(F.linear(x, A), B)  # alpha 4, rank 4
    torch.testing.assert_close(site(x), y, atol=1e-5, rtol=1e-4)
    (y * seed).sum().backward()
    (site(x) * seed).sum().backward()
    torch.testing.assert_close(site.adapter.a.grad, a.grad, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(site.adapter.b.grad, b.grad, atol=1e-4, rtol=1e-4)


def test_the_first_step_moves_b_alone():
    site, _ = make()
    site.adapter.reset()
    site(torch.randn(3, 16)).square().sum().backward()
    assert site.adapter.b.grad.abs().min() > 0 and not site.adapter.a.grad.any()


@pytest.mark.parametrize(
    ("layers", "bases", "published"), [(32, 128, 57_344), (40, 256, 143_360), (80, 512, 573_440)]
)
def test_counts_are_those_of_the_papers_llama_table_and_do_not_know_the_rank(layers, bases, published):
    for rank in (1, 16):
        config = NOLA.Config(method="nola", rank=rank, bases=bases)
        assert 7 * layers * NOLA.count(config, Site("a", 4096, 4096)) == published


def test_with_as_many_bases_as_entries_any_factor_can_be_had():
    target = torch.randn(3, 4)
    M = uniform(0, 12 * 12, 5).view(12, 12) / 12**0.5
    coefficients = torch.linalg.solve(M.mT, target.flatten())
    torch.testing.assert_close(combination(coefficients, (3, 4), 5), target, atol=1e-3, rtol=1e-3)


def test_numbers_are_uniform_and_of_no_visible_pattern():
    numbers = uniform(0, 1_000_000, 7)
    assert numbers.min() >= -1 and numbers.max() < 1
    assert abs(numbers.mean()) < 0.003 and numbers.std() == pytest.approx(3**-0.5, abs=0.002)
    counts = torch.histc(numbers, bins=100, min=-1, max=1)
    assert ((counts - 10_000).abs() < 600).all()  # six standard deviations
    for lag in (1, 2, 64, 576):
        assert abs((numbers[:-lag] * numbers[lag:]).mean() * 3) < 0.006
    bits = torch.linalg.matrix_rank(uniform(0, 64 * 64, 7).view(64, 64))
    assert bits == 64


def test_numbers_depend_on_place_and_seed_alone_and_never_change():
    whole = uniform(0, 1000, 3)
    assert torch.equal(torch.cat([uniform(0, 400, 3), uniform(400, 600, 3)]), whole)
    # Fixed by the definition: a checkpoint holds nothing of the matrices but the seed.
    expected = [_by_hand(place, 3) for place in range(8)]
    assert whole[:8].tolist() == expected
    for other in (4, 5, 1000):
        assert abs((uniform(0, 100_000, other) * uniform(0, 100_000, 3)).mean() * 3) < 0.02
    late = uniform(2**31 - 50, 100, 3)  # places beyond 2^31 wrap without an error
    assert late.unique().numel() > 90


def _by_hand(place, seed):
    """The same hash in Python's whole numbers."""
    mask = 2**32 - 1
    z, key = (seed * 0x9E3779B1 + place) & mask, (seed * 0x85EBCA77 + 0x165667B1) & mask
    for shift, factor in ((16, 0x85EBCA6B), (13, 0xC2B2AE35), (16, 1)):
        z ^= z >> shift
        z = ((z ^ key) * factor) & mask
    return ((z - 2**32 if z >= 2**31 else z) >> 8) / 2**23


def test_sites_have_matrices_of_their_own_and_a_checkpoint_brings_them_back():
    one, two = make(name="a")[0], make(name="b")[0]
    assert one.adapter.seed != two.adapter.seed
    x = torch.randn(3, 16)
    assert not torch.allclose(one(x), two(x))
    two.adapter.load_state_dict(one.adapter.state_dict())
    assert torch.equal(one(x), two(x))
    assert sum(tensor.numel() for tensor in one.adapter.state_dict().values()) == 2 * 6 + 1


def test_the_peft_form_is_a_plain_lora():
    site, weight = make()
    keys, tensors = (
        site.adapter.peft.keys(site.adapter.config, False),
        site.adapter.peft.tensors(site.adapter, None),
    )
    change = keys["lora_alpha"] / keys["r"] * tensors["B"] @ tensors["A"]
    torch.testing.assert_close(weight + change, site.merged_weight(), atol=1e-5, rtol=1e-4)


def test_the_factors_are_kept_for_the_backward_pass_and_no_random_matrix_is():
    site, _ = make(width=64, out=64)
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t.numel()) or t, lambda t: t):
        site(torch.randn(2, 64))
    factor = site.adapter.config.rank * 64
    assert max(kept) <= max(2 * 64, factor) and sum(kept) < 4 * factor
