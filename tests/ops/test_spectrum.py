"""Spectra, ranks and angles of matrices whose answer is known."""

from __future__ import annotations

import pytest
import torch

from lrft.ops.spectrum import (
    decompose,
    decompose_product,
    energy_rank,
    entropy_rank,
    likeness,
    numerical_rank,
    principal_angles,
    stable_rank,
)


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def basis(n: int, k: int, seed: int = 0) -> torch.Tensor:
    return torch.linalg.qr(normal(n, k, seed=seed)).Q


@pytest.mark.parametrize(("out", "k", "into"), [(40, 5, 30), (30, 5, 40), (20, 33, 8), (7, 1, 7), (6, 0, 9)])
def test_a_product_has_the_triples_of_the_dense_matrix(out, k, into):
    A, B = normal(k, into), normal(out, k, seed=1)
    U, S, V = decompose_product(A.float(), B.float())
    dense = B.float().double() @ A.float().double()
    torch.testing.assert_close(S, torch.linalg.svdvals(dense)[: min(k, out, into)])
    torch.testing.assert_close(U @ S.diag() @ V.mT, dense)
    for vectors in (U, V):
        torch.testing.assert_close(vectors.mT @ vectors, torch.eye(len(S), dtype=torch.float64))


def test_no_dense_matrix_is_formed_for_a_product():
    """A (out, in) product of this size would take 4 TB."""
    A, B = torch.randn(2, 10**6), torch.randn(10**6, 2)
    assert len(decompose_product(A, B).S) == 2


def test_ranks_of_equal_singular_values_are_their_number():
    values = torch.full((7,), 3.0)
    assert entropy_rank(values) == pytest.approx(7) and stable_rank(values) == pytest.approx(7)
    assert energy_rank(values) == 7 and numerical_rank(values, (9, 7)) == 7


def test_ranks_follow_their_definitions():
    """Shares 1/2, 1/4, 1/4 have an entropy of 1.5 bits; 81 of 82.01 are 98.8 %."""
    assert entropy_rank(torch.tensor([2.0, 1.0, 1.0])) == pytest.approx(2**1.5)
    assert stable_rank(torch.tensor([2.0, 1.0, 1.0])) == pytest.approx(1.5)
    assert energy_rank(torch.tensor([9.0, 1.0, 0.1])) == 2
    assert energy_rank(torch.tensor([9.0, 1.0, 0.1]), share=0.9) == 1
    assert numerical_rank(torch.tensor([1.0, 1e-3, 1e-9]), (64, 64)) == 2


@pytest.mark.parametrize("values", [torch.zeros(3), torch.zeros(0)], ids=["zeros", "none"])
def test_nothing_has_rank_0(values):
    assert entropy_rank(values) == stable_rank(values) == energy_rank(values) == 0
    assert numerical_rank(values, (3, 3)) == 0


@pytest.mark.parametrize("degrees", [0.0, 1e-5, 30.0, 44.9, 45.1, 89.99999, 90.0])
def test_an_angle_between_planes_is_found_however_small_or_right(degrees):
    """A plane, and the same one turned by `degrees` about one of its lines."""
    angle = torch.tensor(degrees, dtype=torch.float64).deg2rad()
    e = torch.eye(5, dtype=torch.float64)
    P, Q = e[:, :2], torch.stack([e[0], angle.cos() * e[1] + angle.sin() * e[2]], dim=1)
    turn = basis(5, 5, seed=3)
    found = principal_angles(turn @ P, turn @ Q @ basis(2, 2, seed=4))
    torch.testing.assert_close(found, torch.tensor([0.0, degrees], dtype=torch.float64), atol=1e-6, rtol=0)


def test_angles_between_subspaces_of_different_size_are_as_many_as_the_smaller_has():
    P, Q = basis(12, 2), basis(12, 5, seed=1)
    torch.testing.assert_close(principal_angles(P, Q), principal_angles(Q, P))
    assert principal_angles(P, Q).shape == (2,)
    cosines = torch.linalg.svdvals(P.mT @ Q)
    torch.testing.assert_close(principal_angles(P, Q).deg2rad().cos(), cosines)


def test_likeness_is_the_largest_cosine_whatever_its_sign():
    old = basis(8, 8)
    new = torch.stack([-old[:, 3], (old[:, 0] + old[:, 1]) / 2**0.5], dim=1)
    torch.testing.assert_close(likeness(old, new), torch.tensor([1.0, 0.5**0.5], dtype=torch.float64))


def test_a_dense_matrix_is_put_together_again():
    M = normal(6, 9)
    U, S, V = decompose(M)
    torch.testing.assert_close(U @ S.diag() @ V.mT, M)
