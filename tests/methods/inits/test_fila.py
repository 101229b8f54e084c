"""FILA's own statements."""

from __future__ import annotations

import pydantic
import pytest
import torch

from lrft.core.params import Site
from lrft.methods.inits.fila import row_weights
from lrft.registry.axes import ADAPTERS, INITS

OUT, WIDTH = 24, 16
DATA = {"forget": {"source": "forget.jsonl"}, "retain": {"source": "retain.jsonl"}}


def weight():
    return torch.randn(OUT, WIDTH, generator=torch.Generator().manual_seed(1)) / WIDTH**0.5


def fishers():
    """Squared gradients, as small as real ones are, and some rows that only one data set uses."""
    generator = torch.Generator().manual_seed(2)
    forget, retain = (1e-4 * torch.rand(OUT, WIDTH, generator=generator) ** 4 for _ in range(2))
    forget[:6] *= 100
    return forget, retain


def started(forget=None, retain=None, rank=4, alpha=8.0, **settings):
    config = ADAPTERS.declared("lora").config(method="lora", rank=rank, alpha=alpha)
    adapter = ADAPTERS.get("lora")(config, Site("a", WIDTH, OUT))
    init = INITS.get("fila")(INITS.declared("fila").config(method="fila", **DATA, **settings))
    pair = fishers() if forget is None else (forget, retain)
    init.apply(adapter, weight(), dict(zip(init.needs, pair, strict=True)), None)
    return adapter


def change(adapter):
    return adapter.delta_weight(weight()).detach()


def test_row_weights_by_hand():
    """Row 0: 3e-5 / (1e-5 + 1e-5) + 0 = 1.5; row 1: 1e-5 / 1e-5 twice = 2."""
    forget = torch.tensor([[3e-5, 0.0], [1e-5, 1e-5]])
    retain = torch.tensor([[1e-5, 5.0], [0.0, 0.0]])
    torch.testing.assert_close(row_weights(forget, retain), torch.tensor([1.5, 2.0]).sqrt())


@pytest.mark.parametrize("alpha", [4.0, 10.0])
def test_the_weighted_error_is_what_the_leading_singular_values_leave(alpha):
    d = row_weights(*fishers())
    values = torch.linalg.svdvals(d[:, None] * weight())
    left = (d[:, None] * (weight() - change(started(alpha=alpha)))).square().sum()
    torch.testing.assert_close(left, values[4:].square().sum(), atol=1e-6, rtol=1e-3)


def test_no_change_of_that_rank_is_nearer_by_the_weighted_norm():
    d = row_weights(*fishers())[:, None]
    best = (d * (weight() - change(started()))).norm()
    U, S, Vh = torch.linalg.svd(weight(), full_matrices=False)
    assert best < (d * (weight() - (U[:, :4] * S[:4]) @ Vh[:4])).norm()


def test_equal_weights_give_pissas_product():
    flat = torch.full((OUT, WIDTH), 1e-3)
    U, S, Vh = torch.linalg.svd(weight(), full_matrices=False)
    expected = (U[:, :4] * S[:4]) @ Vh[:4]
    torch.testing.assert_close(change(started(flat, flat)), expected, atol=1e-4, rtol=1e-3)


def test_the_factors_are_those_of_the_authors_formula():
    """Written as in their forget.py, with the exact decomposition for theirs."""
    forget, retain = fishers()
    scaling = 8.0 / 4
    row_importance = torch.div(forget, 1e-5 + retain).sum(dim=1).sqrt()
    U, S, Vh = torch.linalg.svd(row_importance[:, None] * weight(), full_matrices=False)
    U, S, V = U[:, :4], S[:4] / scaling, Vh[:4].mT
    adapter = started()
    torch.testing.assert_close(adapter.A, (V * torch.sqrt(S)).t())
    torch.testing.assert_close(adapter.B, (1 / (row_importance + 1e-5))[:, None] * (U * torch.sqrt(S)))


def test_rows_that_the_data_to_forget_never_uses_stay_with_the_base():
    forget, retain = fishers()
    forget[10] = 0.0
    part = change(started(forget, retain))[10]
    assert part.norm() < 0.2 * weight()[10].norm()  # rounding errors, times 1 / (0 + 1e-5)


def test_the_fast_decomposition_leaves_no_less_and_little_more():
    d = row_weights(*fishers())[:, None]
    exact, fast = ((d * (weight() - change(started(niter=n)))).norm() for n in (None, 4))
    assert exact - 1e-5 <= fast <= 1.02 * exact


def test_both_data_sets_must_be_named():
    config = INITS.declared("fila").config
    with pytest.raises(pydantic.ValidationError, match="retain"):
        config(forget=DATA["forget"])
    init = INITS.get("fila")(config(**DATA))
    labels = {need.partition("@")[2] for need in init.needs}
    assert labels == set(init.sources()) == {"forget", "retain"}
