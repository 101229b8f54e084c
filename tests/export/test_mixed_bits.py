"""Delta-CoMe: groups of singular vectors within a budget, and what they leave of a change."""

from __future__ import annotations

import pytest
import torch

from lrft.export.mixed_bits import _packed, budget, compress, read_vectors
from lrft.ops.gptq import gptq


def falling(out=48, into=40, power=1.5):
    """A change whose singular values fall as those of fine-tuned models do, and inputs with a few large channels."""
    draws = torch.Generator().manual_seed(0)
    U, _ = torch.linalg.qr(torch.randn(out, into, generator=draws))
    V, _ = torch.linalg.qr(torch.randn(into, into, generator=draws))
    S = torch.arange(1, into + 1).float() ** -power
    X = torch.randn(200, into, generator=draws) * torch.logspace(-1, 1, into)
    return (U * S) @ V.mT, S, X.mT @ X


def test_the_groups_are_those_of_the_authors_at_their_sixteenth():
    assert budget(4096, 4096, 1 / 16) == [(8, 2), (3, 32), (2, 968)]
    (*leading, (bits, columns)) = budget(11008, 4096, 1 / 16)
    assert leading == [(8, 2), (3, 32)] and (bits, columns) == (2, 1436)
    theirs = (11008 + 4096) * (
        8 * 2 + 3 * 32 + 2 * 1428
    )  # their columns there, 8 fewer, leave some of the sixteenth
    assert theirs / (16 * 11008 * 4096) == pytest.approx(0.0621, abs=5e-5) and columns >= 1428
    for out, into, ratio in ((4096, 4096, 1 / 16), (1024, 4096, 1 / 16), (64, 64, 1 / 8), (64, 48, 1 / 16)):
        spent = (out + into) * sum(bits * columns for bits, columns in budget(out, into, ratio))
        assert 0.8 * ratio < spent / (16 * out * into) <= ratio
    assert budget(64, 64, 1.0) == [(8, 2), (3, 32), (2, 30)]  # no more columns than there are
    assert budget(8, 8, 1 / 64) == []


def test_sixteen_bits_leave_the_tail_of_the_singular_values():
    change, S, _ = falling()
    found = sum(one.dense() for one in compress(change, [(16, 10)]))
    assert float((found - change).norm()) == pytest.approx(float(S[10:].norm()), rel=1e-3)


def test_mixed_bits_beat_two_bits_of_the_same_size_and_feedback_beats_nearest():
    change, _, moment = falling()

    def left(groups, inputs):
        D = sum(one.dense() for one in compress(change, groups, inputs)) - change
        return float((D @ moment @ D.mT).trace())

    mixed, plain = [(8, 2), (3, 8), (2, 10)], [(2, 30)]
    assert sum(b * c for b, c in mixed) == sum(b * c for b, c in plain)
    assert left(mixed, moment) < 0.5 * left(plain, moment)
    assert left(mixed, moment) < left(mixed, None)


def grid_of(x, bits):
    """The scales and zero points of the authors' quantizer, per channel and not symmetric."""
    low, high = (
        torch.minimum(x.min(1)[0], torch.zeros(len(x))),
        torch.maximum(x.max(1)[0], torch.zeros(len(x))),
    )
    scale = (high - low) / (2**bits - 1)
    return scale, torch.round(-low / scale)


def gptq_in_blocks(W, H, bits, block=128):
    """GPTQ as GPTQ-for-LLaMa has it: act-order, groups and lazy updates by blocks of 128 columns, float32."""
    W, H = W.clone(), H.clone()
    order = torch.argsort(torch.diag(H), descending=True)
    W, H, Q = W[:, order], H[order][:, order], torch.zeros_like(W)
    H += 0.01 * torch.diag(H).mean() * torch.eye(len(H))
    inverse = torch.linalg.cholesky(
        torch.cholesky_inverse(torch.linalg.cholesky(H.double())), upper=True
    ).float()
    for first in range(0, W.shape[1], block):
        last = min(first + block, W.shape[1])
        scale, zero = grid_of(W[:, first:last], bits)
        errors = torch.zeros(len(W), last - first)
        for k in range(first, last):
            w = W[:, k].clone()
            Q[:, k] = scale * (torch.clamp(torch.round(w / scale) + zero, 0, 2**bits - 1) - zero)
            errors[:, k - first] = (w - Q[:, k]) / inverse[k, k]
            W[:, k:last] -= errors[:, k - first, None] * inverse[k, k:last]
        W[:, last:] -= errors @ inverse[first:last, last:]
    return Q[:, torch.argsort(order)]


@pytest.mark.parametrize("into", [40, 200])
def test_groups_are_rounded_as_by_the_authors_loop(into):
    """V against the inputs, then U against what V makes of them; the float16 of the scales is all that differs."""
    draws = torch.Generator().manual_seed(2)
    change = torch.randn(150, 30, generator=draws) @ torch.randn(30, into, generator=draws) / into
    X = torch.randn(3 * into, into, generator=draws) * torch.logspace(-1, 1, into)
    U, S, Vh = torch.linalg.svd(change, full_matrices=False)
    wanted, start = torch.zeros_like(change), 0
    for bits, columns in ((8, 2), (3, 8), (2, 17)):
        end = start + columns
        V = gptq_in_blocks(Vh[start:end], X.T @ X, bits)
        behind = X @ (S[start:end, None] * V).T
        wanted += (gptq_in_blocks(U[:, start:end], behind.T @ behind, bits) * S[start:end]) @ V
        start = end
    found = sum(one.dense() for one in compress(change, [(8, 2), (3, 8), (2, 17)], X.T @ X))
    assert (
        float((found - wanted).norm() / wanted.norm()) < 1e-3 < float((found - change).norm() / change.norm())
    )


@pytest.mark.parametrize(("size", "dtype"), [(1.0, torch.float16), (1e-3, torch.float32)])
def test_scales_are_float16_unless_all_are_too_small_for_it(size, dtype):
    """Those of 8 bits are about a 255th of the vectors, whose entries are small where they are long."""
    W = size * torch.randn(6, 200, generator=torch.Generator().manual_seed(3))
    W[0] *= 1e-3  # one row alone may be, and is off by as much as others are
    found = gptq(W, None, 8, 128)
    packed = _packed(found)
    assert packed.scale.dtype == dtype and torch.equal(packed.codes, found.codes)
    assert float((packed.dense() - found.dense()).norm() / found.dense().norm()) < 1e-3


def test_a_group_is_the_same_when_it_is_read_back():
    change, _, moment = falling()
    for one in compress(change, [(16, 2), (8, 2), (3, 5)], moment):
        assert torch.equal(read_vectors(one.held(), (48, 40), one.bits).dense(), one.dense())
