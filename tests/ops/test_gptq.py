"""GPTQ on affine grids: the published loop, written out anew on the same numbers."""

from __future__ import annotations

import pytest
import torch

from lrft.ops.gptq import Rounded, gptq, grid, to_grid


def made(rows=6, columns=20):
    draws = torch.Generator().manual_seed(0)
    X = torch.randn(64, columns, generator=draws) @ torch.randn(columns, columns, generator=draws)
    return torch.randn(rows, columns, generator=draws), X.mT @ X


def by_hand(weight, H, bits, group):
    """Algorithm 1 in float64, column by column, with the whole inverse updated in every step."""
    H = H.double().clone()
    order = H.diagonal().argsort(descending=True)
    H, W = H[order][:, order], weight.double()[:, order].clone()
    H += 0.01 * H.diagonal().mean() * torch.eye(len(H))
    out = torch.empty_like(W)
    for k in range(W.shape[1]):
        if k % group == 0:
            scale, zero = grid(W[:, k : k + group].float(), bits)
        q = scale * (to_grid(W[:, k].float(), scale, zero, bits) - zero)
        inverse = torch.linalg.inv(H[k:, k:])
        W[:, k:] -= torch.outer((W[:, k] - q) / inverse[0, 0], inverse[0])
        out[:, k] = q
    found = torch.empty_like(out)
    found[:, order] = out
    return found.float()


@pytest.mark.parametrize(("bits", "group"), [(2, 8), (3, 20), (8, 128)])
def test_it_is_the_published_loop(bits, group):
    weight, H = made()
    torch.testing.assert_close(gptq(weight, H, bits, group).dense(), by_hand(weight, H, bits, group))


def test_an_affine_grid_has_zero_on_it_and_both_ends():
    x = torch.tensor([[-1.0, 0.5, 2.0], [1.0, 2.0, 3.0], [0.0, 0.0, 0.0]])
    scale, zero = grid(x, 2)
    torch.testing.assert_close(scale, torch.tensor([1.0, 1.0, 2 / 3]))
    assert zero.tolist() == [1.0, 0.0, 2.0]
    values = scale[:, None] * (to_grid(x, scale[:, None], zero[:, None], 2) - zero[:, None])
    torch.testing.assert_close(values, torch.tensor([[-1.0, 0.0, 2.0], [1.0, 2.0, 3.0], [0.0, 0.0, 0.0]]))


def test_feedback_leaves_less_of_the_output_than_nearest_rounding():
    weight, H = made()
    errors = []
    for moment in (H, None):
        D = gptq(weight, moment, 3, 20).dense() - weight
        errors.append(float((D @ H @ D.mT).trace()))
    assert errors[0] < 0.75 * errors[1]


def test_what_is_packed_decodes_to_the_same_and_has_the_bytes_of_its_bits():
    weight, H = made()
    H[:, 3] = H[3] = 0.0  # an input that is always 0
    found = gptq(weight, H, 3, 8, scale_dtype=torch.float16)
    held = found.packed()
    back = Rounded.unpacked(held, 20, 3, 8)
    assert torch.equal(back.dense(), found.dense()) and not found.dense()[:, 3].any()
    assert held["codes"].shape == (6, 8) and held["zero"].shape == (6, 2)  # 60 and 9 bits a row
    assert "order" not in gptq(weight, None, 3, 8).packed()
