"""`tarot`: whitening, layers and folds beside a plain reading of the authors' arithmetic."""

from __future__ import annotations

import pytest
import torch

from lrft.core.data_selection import Measured
from lrft.methods.data_selection.tarot import whiten
from lrft.ops.sign_projection import project_signs
from lrft.ops.transport import sinkhorn
from lrft.registry.axes import DATA_SELECTIONS
from lrft.registry.errors import DataError
from tests.each import each

DRAW = torch.Generator().manual_seed(0)
SKEW = torch.diag(torch.tensor([9.0, 3.0, 1.0, 0.5, 0.2]))
POOL, TARGET = (torch.randn(n, 5, generator=DRAW) @ SKEW for n in (40, 6))


def selected(budget=12, pool=POOL, target=TARGET, seed=0, **settings):
    method = DATA_SELECTIONS.get("tarot")(DATA_SELECTIONS.settings("tarot", **settings))
    return method.choose(Measured([1] * len(pool), pool), Measured([1] * len(target), target), budget, seed)


def whitened():
    """numpy's inverse square root by Cholesky, written out."""
    x = torch.cat([POOL, TARGET]).double()
    x = x - x.mean(0)
    factor = torch.linalg.cholesky(x.T @ x / len(x) + 1e-5 * torch.eye(5, dtype=x.dtype))
    x = x @ torch.linalg.inv(factor).T
    assert torch.allclose(x.T @ x / len(x), torch.eye(5, dtype=x.dtype), atol=1e-3)
    return x / x.norm(dim=1, keepdim=True)


def test_whitened_features_are_those_of_the_inverse_factor():
    z, ridge = whiten(torch.cat([POOL, TARGET]), 1e-5)
    assert torch.allclose(z, whitened()) and 0 < ridge < 1e-5
    again, more = whiten(torch.cat([POOL, TARGET]) * 1e-4, 1e-5)
    assert more > 0.9 and not torch.allclose(again, z, atol=0.1)


def test_layers_are_taken_whole_and_the_last_by_potential():
    z = whitened()
    similar = z[:40] @ z[40:].T
    order = similar.argsort(0, descending=True)
    kept: set[int] = set()
    for layer in order:
        new = sorted(set(layer.tolist()) - kept)
        if len(kept) + len(new) > 12:
            cost = (2 - 2 * similar[new]).clamp_min(0).sqrt()
            f = sinkhorn(cost, 1e-4).f
            kept |= {new[k] for k in f.argsort(descending=True)[: 12 - len(kept)].tolist()}
            break
        kept |= set(new)
    found = selected().chosen
    assert {one.row for one in found} == kept and len(kept) == 12
    assert all(
        abs(one.score - float(similar[one.row].max())) < 1e-9 and -1 <= one.score <= 1 for one in found
    )


def test_without_whitening_the_largest_feature_would_decide():
    z = whitened()
    plain = torch.nn.functional.cosine_similarity(POOL[:, None], TARGET[None], dim=2)
    assert not torch.equal(plain.argmax(0), (z[:40] @ z[40:].T).argmax(0))


def test_of_its_own_size_it_stops_where_the_transport_no_longer_falls():
    z = whitened()
    rows, targets = z[:40], z[40:]
    similar = rows @ targets.T
    order = similar.argsort(0, descending=True)
    parts = torch.randperm(6, generator=torch.Generator().manual_seed(1)).tensor_split(3)
    expected: set[int] = set()
    for part in parts:
        others = targets[[t for t in range(6) if t not in part.tolist()]]
        costs, sets = [], []
        for k in range(1, 41):
            near = {int(r) for t in part.tolist() for r in order[:k, t] if similar[r, t] > 0}
            sets.append(near)
            costs.append(sinkhorn(torch.cdist(rows[sorted(near)], others), 0.05**2).value)
            if k > 1 and costs[-1] >= costs[-2]:
                break
        expected |= sets[-2]
    found = selected(40, size="transport", folds=3, blur=0.05, seed=1).chosen
    assert {one.row for one in found} == expected and 6 <= len(expected) < 40


@each(
    ("change", "said"),
    [
        ({"target": TARGET[:1], "size": "transport"}, "it has one row"),
        ({"pool": POOL[:3], "target": TARGET[:2]}, "set dimensions to at most 2"),
        ({"pool": torch.ones(4, 5), "target": torch.ones(2, 5)}, "those of all rows are equal"),
    ],
)
def test_what_cannot_be_told_apart_is_refused(change, said):
    with pytest.raises(DataError, match=said):
        selected(3, **change)


def test_signs_keep_products_and_depend_on_the_place_alone():
    rows = torch.randn(3, 9000, generator=torch.Generator().manual_seed(4))
    projected = project_signs(rows, 1000, 1)
    exact = rows @ rows.T
    assert ((projected @ projected.T / 1000 - exact).abs() < 0.15 * exact.diagonal().mean()).all()
    signs = project_signs(torch.eye(4100)[4090:], 64, 1)
    assert set(signs.unique().tolist()) == {-1.0, 1.0} and not torch.equal(signs[0], signs[6])
    zeros = torch.zeros(3, 4096)
    parts = rows[:, :4096], torch.cat([zeros, rows[:, 4096:]], 1)
    together = project_signs(parts[0], 64, 1) + project_signs(parts[1], 64, 1)
    assert torch.allclose(together, project_signs(rows, 64, 1), atol=1e-3)
    assert not torch.equal(project_signs(rows, 64, 1), project_signs(rows, 64, 2))
