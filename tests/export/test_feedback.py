"""Error feedback: the layer's output comes closer than by nearest rounding, on the same grid."""

from __future__ import annotations

import pytest
import torch

from lrft.core.params import Site
from lrft.export.feedback import BLOCK, Feedback, groups, rounders
from lrft.registry.errors import NumericalError

DTYPES = (torch.bfloat16, torch.float16)


def layer(columns: int, rows: int = 24) -> tuple[torch.Tensor, torch.Tensor]:
    """Inputs (tokens, in) of which a few directions hold most, and a weight (out, in)."""
    generator = torch.Generator().manual_seed(columns)
    mixing = torch.randn(columns, columns, generator=generator) * torch.logspace(0, -2, columns)
    X = torch.randn(400, columns, generator=generator) @ mixing.mT
    return X, torch.randn(rows, columns, generator=generator)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("columns", [5, BLOCK, BLOCK + 9, 2 * BLOCK + 1])
def test_the_output_is_closer_than_by_nearest_rounding(dtype, columns):
    X, W = layer(columns)
    Q = Feedback(X.mT @ X)("w", W, dtype)
    assert Q.dtype == dtype and Q.shape == W.shape

    def error(rounded: torch.Tensor) -> float:
        return float((X @ (W - rounded.float()).mT).norm())

    assert error(Q) < (0.9 if columns < 10 else 0.4) * error(W.to(dtype))


def test_blocks_change_nothing_but_speed(monkeypatch):
    X, W = layer(37)
    whole = Feedback(X.mT @ X)("w", W, torch.bfloat16)
    monkeypatch.setattr("lrft.export.feedback.BLOCK", 5)
    again = Feedback(X.mT @ X)("w", W, torch.bfloat16)
    assert (
        whole != again
    ).float().mean() < 0.01  # a sum in another order may fall on the other side of a tie


def test_inputs_that_do_not_move_together_leave_nearest_rounding():
    W = torch.randn(8, 16)
    assert torch.equal(Feedback(torch.eye(16))("w", W, torch.bfloat16), W.to(torch.bfloat16))


def test_inputs_that_are_always_zero_are_no_obstacle():
    X, W = layer(20)
    X[:, 3:9] = 0
    Q = Feedback(X.mT @ X)("w", W, torch.bfloat16)
    assert Q.isfinite().all()
    assert torch.equal(Q[:, 3:9], W[:, 3:9].to(torch.bfloat16))


def test_fewer_tokens_than_inputs_are_no_obstacle():
    X, W = layer(50)
    assert Feedback(X[:3].mT @ X[:3])("w", W, torch.bfloat16).isfinite().all()


def test_layers_that_share_inputs_share_the_decomposition():
    moment, other = torch.eye(4), torch.eye(4)
    found = rounders({"q": moment, "k": moment, "o": other})
    assert found["q"] is found["k"] and found["q"] is not found["o"]


def test_what_it_cannot_say_is_refused_by_name():
    with pytest.raises(NumericalError, match=r"layer\.weight: .*beyond float16"):
        Feedback(torch.eye(2))("layer.weight", torch.tensor([[1e5, 1.0]]), torch.float16)
    with pytest.raises(NumericalError, match=r"layer\.weight: .*not finite"):
        Feedback(torch.eye(2))("layer.weight", torch.tensor([[float("nan"), 1.0]]), torch.bfloat16)


def test_groups_keep_the_order_and_the_memory():
    sites = [Site(str(i), size, 4) for i, size in enumerate((10, 10, 30, 10))]
    found = groups(sites, memory=4 * 250)
    assert [[site.name for site in group] for group in found] == [["0", "1"], ["2"], ["3"]]
    assert groups([]) == []
