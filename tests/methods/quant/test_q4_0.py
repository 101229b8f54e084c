"""Q4_0: the bytes of the gguf library, and scales of either sign."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from lrft.methods.quant.q4_0 import Q40
from tests.each import each

gguf = pytest.importorskip("gguf")
KIND = gguf.GGMLQuantizationType.Q4_0


def weight(seed=0, out=24, width=96):
    return torch.randn(out, width, generator=torch.Generator().manual_seed(seed)) * 0.02


def test_the_bytes_are_those_of_the_library_and_so_is_what_they_decode_to():
    dense = weight()
    dense[3, :32] = 0
    layer = Q40(dense)
    theirs = gguf.quants.quantize(dense.numpy(), KIND)
    assert np.array_equal(layer.blocks.numpy(), theirs)
    assert np.array_equal(layer.weight().numpy(), gguf.quants.dequantize(theirs, KIND))
    assert layer.stored_bytes * 8 / dense.numel() == Q40.bits(layer.config) == 4.5


def test_the_relative_error_is_the_one_that_the_docstring_says():
    dense = weight(out=256, width=512)
    assert ((Q40(dense).weight() - dense).norm() / dense.norm()).item() == pytest.approx(0.087, abs=0.002)


@each("seed", range(4))
def test_searched_scales_cost_no_more_and_codes_are_taken_as_they_are(seed):
    dense, layer = weight(seed), Q40(weight(seed))
    cost = torch.rand(96, generator=torch.Generator().manual_seed(seed)) + 0.1
    before = ((layer.weight() - dense).square() * cost).sum()
    layer.search(dense, cost)
    scale, levels = layer.grid()
    assert (scale < 0).any() and (scale > 0).any()
    codes = ((dense / scale)[..., None] - levels).abs().argmin(-1)
    layer.take(codes)
    torch.testing.assert_close(layer.weight(), scale * levels[codes])
    assert ((layer.weight() - dense).square() * cost).sum() < before
    decoded = gguf.quants.dequantize(layer.blocks.numpy(), KIND)
    assert np.array_equal(layer.weight().numpy(), decoded)


def test_layers_of_whole_blocks_fit_a_file():
    assert Q40.fits(None, 7, 64) and not Q40.fits(None, 32, 48)
