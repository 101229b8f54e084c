"""Delta-CoMe: groups of singular vectors within a budget, and what they leave of a change."""

from __future__ import annotations

import pytest
import torch

from lrft.export.mixed_bits import budget, compress, read_vectors


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


def test_a_group_is_the_same_when_it_is_read_back():
    change, _, moment = falling()
    for one in compress(change, [(16, 2), (8, 2), (3, 5)], moment):
        assert torch.equal(read_vectors(one.held(), (48, 40), one.bits).dense(), one.dense())
