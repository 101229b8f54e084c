"""HQQ: the numbers of the authors' package, and its loop written out group by group."""

from __future__ import annotations

import pytest
import torch

from lrft.methods.quant._codes import unpack
from lrft.methods.quant.hqq import HQQ, shrink
from lrft.registry.axes import QUANTIZERS
from lrft.registry.errors import NumericalError
from tests.each import each

# hqq 0.2.8.post1, Quantizer.quantize(nbits, group_size=64, axis=1) on a CPU, of `weight()`: zero points, then codes.
PACKAGE = {
    2: ([0.934050, 1.399191, 1.850690, 1.273129], [0, 0, 1, 1, 1, 1, 1, 0, 1, 0, 1, 1]),
    3: ([2.679451, 3.499155, 3.516193, 3.106050], [1, 1, 2, 2, 4, 4, 2, 0, 3, 1, 3, 3]),
    4: ([5.873378, 7.620956, 7.409700, 7.381268], [3, 3, 5, 5, 8, 8, 5, 0, 7, 2, 7, 7]),
    8: ([97.65992, 128.63440, 125.71490, 122.77843], [46, 44, 86, 78, 137, 130, 83, 0, 113, 39, 114, 112]),
}


def weight(out=16, width=128, seed=0):
    return torch.randn(out, width, generator=torch.Generator().manual_seed(seed)) * 0.02


def stored(dense, **settings):
    return HQQ(dense, None, HQQ.Config(method="hqq", **settings))


@each("bits", [2, 3, 4, 8])
def test_zero_points_and_codes_are_those_of_the_authors_package(bits):
    layer, (zeros, codes) = stored(weight(), bits=bits), PACKAGE[bits]
    torch.testing.assert_close(layer.zero[:4].float(), torch.tensor(zeros), rtol=6e-4, atol=1e-3)  # float16
    assert unpack(layer.codes, bits, 12).tolist() == codes


@each("bits", [2, 4])
def test_it_is_the_loop_of_the_formula(bits):
    most, dense = 2**bits - 1, weight(seed=3)
    groups = list(dense.view(-1, 64))
    t = [most / (g.max() - g.min()) for g in groups]
    z = [-g.min() * step for g, step in zip(groups, t, strict=True)]
    best = torch.inf
    for _ in range(20):
        n = [(g * a + b).round().clamp(0, most) for g, a, b in zip(groups, t, z, strict=True)]
        missing = [g - (k - b) / a for g, k, a, b in zip(groups, n, t, z, strict=True)]
        z = [(k - (g - shrink(m)) * a).mean() for g, k, m, a in zip(groups, n, missing, t, strict=True)]
        error = torch.cat(missing).abs().mean()
        if error >= best:
            break
        best = error
    n = [(g * a + b).round().clamp(0, most) for g, a, b in zip(groups, t, z, strict=True)]
    expected = torch.cat([(k - b) / a for k, a, b in zip(n, t, z, strict=True)]).view(dense.shape)
    torch.testing.assert_close(stored(dense, bits=bits).weight(), expected, rtol=2e-3, atol=1e-4)  # float16


def test_what_is_small_is_shrunk_to_nothing():
    x = torch.tensor([-3.0, -0.1, 0.0, 0.1, 3.0])
    assert shrink(x).tolist() == pytest.approx([-2.9281, 0, 0, 0, 2.9281], abs=1e-4)


def test_the_fit_leaves_a_smaller_mean_error_than_the_ends_of_the_range():
    dense = weight(64, 512, seed=1)
    layer = stored(dense)
    groups = dense.view(-1, 64)
    low, high = groups.amin(1, keepdim=True), groups.amax(1, keepdim=True)
    plain = ((groups - low) / (high - low) * 15).round() * (high - low) / 15 + low
    assert (layer.weight() - dense).abs().mean() < (plain.view(dense.shape) - dense).abs().mean()


def test_a_short_last_group_is_fitted_to_its_own_weights():
    dense = weight(3, 30)
    layer = stored(dense)
    alone = stored(dense.view(-1)[64:][None])
    assert torch.equal(layer.weight().view(-1)[64:], alone.weight().view(-1))


@each(("bits", "size"), [(4, 64), (2, 16), (3, 64), (8, 128)])
def test_the_bits_are_those_of_the_docstring(bits, size):
    layer = stored(weight(64, 256), bits=bits, group_size=size)
    assert layer.stored_bytes * 8 / (64 * 256) == HQQ.bits(layer.config) == bits + 32 / size


@each("name", ["hqq", "q4_0", "int_groups", "nf_blocks"])
def test_a_weight_whose_scales_have_no_number_is_refused(name):
    """A scale of float16 that is infinite makes weights that are no numbers, of which a loss tells no reason."""
    cls = QUANTIZERS.get(name)
    if name in ("hqq", "q4_0"):  # the scales of the others are float32
        with pytest.raises(
            NumericalError, match=f"{name} cannot store a weight of 16 x 128: .*too large for its"
        ):
            cls(weight() * 1e30)
    layer = cls(weight())
    with pytest.raises(NumericalError, match=f"{name} cannot store a weight of 16 x 128: .*no finite number"):
        layer.write(weight().fill_(torch.nan))


def test_a_group_far_from_nothing_has_a_zero_point_that_float16_cannot_say():
    dense = 100 + weight() * 0.1
    with pytest.raises(NumericalError, match="values go up to 100, and then a scale is too large"):
        stored(dense)
    assert stored(dense.div(100)).weight().isfinite().all()
