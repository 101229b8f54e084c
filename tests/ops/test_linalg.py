"""Truncated decompositions: exact where they are asked to be, and near to it where a matrix is too large for that."""

from __future__ import annotations

import pytest
import torch

from lrft.ops import linalg
from lrft.ops.linalg import truncated_svd
from lrft.recipe.load import load_recipe


def decaying(m, n):
    """A matrix with singular values 1, 1/2, 1/3, ..."""
    torch.manual_seed(0)
    U, V = (torch.linalg.qr(torch.randn(k, min(m, n)))[0] for k in (m, n))
    return U / torch.arange(1, min(m, n) + 1) @ V.mT


@pytest.mark.parametrize("niter", ["exact", None])
def test_a_small_matrix_is_decomposed_exactly(niter):
    matrix = decaying(48, 64)
    U, S, Vh = truncated_svd(matrix, 5, niter)
    torch.testing.assert_close(S, 1 / torch.arange(1.0, 6), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(U * S @ Vh, matrix @ Vh.mT @ Vh, rtol=1e-4, atol=1e-5)


def test_a_large_one_is_not_unless_asked_and_comes_near(monkeypatch):
    monkeypatch.setattr(linalg, "LARGEST_EXACT", 100)
    asked = []
    fast = torch.svd_lowrank
    monkeypatch.setattr(torch, "svd_lowrank", lambda *a, **k: asked.append(k) or fast(*a, **k))
    matrix = decaying(120, 160)
    _, exact, _ = truncated_svd(matrix, 5, "exact")
    assert asked == []
    _, near, _ = truncated_svd(matrix, 5)
    assert asked == []
    _, near, _ = truncated_svd(matrix, 5, None)
    assert asked == [{"q": 10, "niter": 16}]
    torch.testing.assert_close(near, exact, rtol=1e-5, atol=1e-6)
    truncated_svd(decaying(90, 160), 5, None)
    assert len(asked) == 1


def test_a_run_with_large_layers_says_that_their_svds_are_not_exact(tiny, monkeypatch):
    from lrft.build import adapt, remarks

    monkeypatch.setattr(remarks, "LARGEST_EXACT", 63)
    given = [f"model.name={tiny()}", "train.device=cpu", "quantization=none"]
    recipe = load_recipe("recipes/smoke/pissa.yaml", [*given, "init.niter=null"]).recipe
    (said,) = [note for note in adapt.adapt(recipe).notes if note.startswith("init.niter")]
    assert said.endswith(
        "layers above 63 rows and columns are randomised with 16 iterations; `exact` takes far longer"
    )
    for settled in ("exact", "2"):
        recipe = load_recipe("recipes/smoke/pissa.yaml", [*given, f"init.niter={settled}"]).recipe
        assert not [note for note in adapt.adapt(recipe).notes if note.startswith("init.niter")]
