"""LoRA-LEGO: clusters of rank components, and the scale of what they become."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch

from lrft.core.combine import Part
from lrft.methods.combine._kmeans import _start, kmeans
from lrft.methods.combine.lego import cluster, units
from lrft.registry.errors import UsageError
from tests.methods.combine.made import change, part


def test_as_many_clusters_as_units_without_reweighting_are_the_sum():
    parts = [part(0, 2, 0.5), part(1, 3, 2.0)]
    wanted = sum(one.change() for one in parts)
    torch.testing.assert_close(change("lego", parts, rank=5, reweight="none"), wanted, atol=1e-5, rtol=1e-5)
    scaled = change("lego", parts, rank=5, reweight="output")
    torch.testing.assert_close(scaled, (2.5 / 5) ** 0.5 * wanted, atol=1e-5, rtol=1e-5)


def test_a_copy_of_an_adapter_is_merged_into_it():
    """Equal units fall into one cluster, whose centre they are, so twins of any number give the adapter back."""
    one = part(0, 3, 2.0)
    order = [2, 0, 1]
    other = Part(one.A[order], one.B[:, order], one.scale)
    torch.testing.assert_close(change("lego", [one, other, one]), one.change(), atol=1e-5, rtol=1e-5)


def test_reweighting_gives_a_centre_the_mean_length_of_its_units():
    points = torch.tensor([[3.0, 0.0], [0.0, 3.0], [100.0, 0.0], [102.0, 0.0]])
    centres = cluster(points, 2, reweight="parameters")
    short = centres[centres.norm(dim=1).argmin()]
    torch.testing.assert_close(short, torch.full((2,), 3 / 2**0.5))  # the mean (1.5, 1.5) at length 3
    plain = cluster(points, 2, reweight="none")
    assert sorted(plain.norm(dim=1).tolist()) == pytest.approx([1.5 * 2**0.5, 101.0])


def test_clusters_have_the_least_inertia_of_all_partitions():
    draws = torch.Generator().manual_seed(0)
    points = torch.randn(7, 3, generator=draws)

    def inertia(of):
        groups = [points[of == k] for k in set(of.tolist())]
        return sum(float((group - group.mean(0)).square().sum()) for group in groups)

    best = min(
        inertia(torch.tensor(of)) for of in itertools.product(range(3), repeat=7) if set(of) == {0, 1, 2}
    )
    assert inertia(kmeans(points, 3, seed=0)) == pytest.approx(best, rel=1e-5)


def test_more_clusters_than_different_points_leave_none_empty():
    of = kmeans(torch.zeros(5, 2), 3, seed=0)
    assert set(of.tolist()) == {0, 1, 2}


def test_balanced_units_are_the_same_change_with_halves_of_one_length():
    one = part(0, 3, 2.0)
    A, B, ranks = units([one], balance=True)
    torch.testing.assert_close(A.norm(dim=1), B.norm(dim=1))
    torch.testing.assert_close(B.mT @ A, one.change(), atol=1e-5, rtol=1e-5)
    assert ranks == [3]


def test_a_dense_change_is_refused():
    with pytest.raises(UsageError, match="--method lego: a parent has no factors at layer"):
        change("lego", [part(0), part(1, 0)])


def in_numpy(parts, k, starts, root_of_scale):
    """The method written again in numpy, from the same first centres: clusters by a loop over points, sums of outer
    products in the place of factors, and the two reweightings as they are told of the paper.
    """
    points = np.concatenate(
        [
            np.concatenate([one.A.numpy() * root_of_scale(one), one.B.T.numpy() * root_of_scale(one)], axis=1)
            for one in parts
        ]
    ).astype(np.float64)
    draws = torch.Generator().manual_seed(0)
    best = None
    for _ in range(starts):
        centres = _start(torch.from_numpy(points), k, draws).numpy()
        for _ in range(300):
            of = np.array(
                [min(range(k), key=lambda i: ((point - centres[i]) ** 2).sum()) for point in points]
            )
            centres = np.array([points[of == i].mean(axis=0) for i in range(k)])
        inertia = sum(((points[of == i] - centres[i]) ** 2).sum() for i in range(k))
        if best is None or inertia < best[0]:
            best = inertia, of, centres
    _, of, centres = best
    into = parts[0].A.shape[1]
    found = np.zeros((parts[0].B.shape[0], into))
    for i in range(k):
        length = np.sqrt((points[of == i] ** 2).sum(axis=1)).mean()
        centre = centres[i] * length / np.sqrt((centres[i] ** 2).sum())
        found += np.outer(centre[into:], centre[:into])
    return np.sqrt(np.mean([len(one.A) for one in parts]) / k) * found


@pytest.mark.parametrize("k", [1, 2, 4, 7])
def test_it_is_what_an_independent_computation_from_the_same_centres_makes(k):
    parts = [part(seed, rank, scale) for seed, rank, scale in ((0, 3, 0.5), (1, 4, 2.0), (2, 2, 1.0))]
    # A unit's scale is in both halves alike.
    wanted = in_numpy(parts, k, starts=3, root_of_scale=lambda one: one.scale**0.5)
    found = change("lego", parts, rank=k, starts=3)
    np.testing.assert_allclose(found.numpy(), wanted, atol=1e-5, rtol=1e-4)
