"""torchao's int8: the numbers of the library, and its formula written out row by row."""

from __future__ import annotations

import pytest
import torch

from lrft.methods.quant.torchao_int8 import TorchaoInt8
from tests.each import each

FP32, BF16, FP16 = torch.float32, torch.bfloat16, torch.float16

# torchao 0.18.0, quantize_(linear, Int8WeightOnlyConfig(granularity=PerRow() or PerGroup(32))) on a CPU, of `weight()`:
# the first scales, the first codes of rows 0 and 2, the sum of every code times its place, and the first weight read.
LIBRARY = {
    (FP32, None): (
        ["0x1.187be8p-11", "0x1.add888p-12", "0x1p-23", "0x1p-23"],
        [-42, -43, -9, -16, 32, 26, -12, -79, 12, -47, 13, 12],
        [-1, -1, -1, 1, 1, 1, 3, -2],
        17197,
        -0.02246919274330139,
    ),
    (FP32, 32): (
        ["0x1.5beaa4p-12", "0x1.187be8p-11", "0x1.a643dp-12", "0x1.add888p-12", "0x1p-23"],
        [-68, -69, -15, -26, 51, 42, -19, -128, 19, -76, 21, 19],
        [-1, -1, -1, 1, 1, 1, 3, -2],
        19618,
        -0.022562338039278984,
    ),
    (BF16, None): (
        ["0x1.1ap-11", "0x1.aep-12", "0x1p-23", "0x1p-23"],
        [-42, -43, -9, -16, 32, 26, -12, -79, 12, -47, 13, 11],
        [-1, -1, -1, 1, 1, 1, 3, -2],
        17432,
        -0.0225830078125,
    ),
    (BF16, 32): (
        ["0x1.5cp-12", "0x1.1ap-11", "0x1.a6p-12", "0x1.aep-12", "0x1p-23"],
        [-68, -70, -15, -26, 51, 42, -19, -127, 19, -76, 21, 19],
        [-1, -1, -1, 1, 1, 1, 3, -2],
        19825,
        -0.0225830078125,
    ),
    (FP16, None): (
        ["0x1.188p-11", "0x1.aep-12", "0x1p-23", "0x1p-23"],
        [-42, -43, -9, -16, 32, 26, -12, -79, 12, -47, 13, 12],
        [-2, 0, -2, 1, 1, 1, 4, -2],
        17198,
        -0.0224761962890625,
    ),
    (FP16, 32): (
        ["0x1.5bcp-12", "0x1.188p-11", "0x1.a64p-12", "0x1.aep-12", "0x1p-23"],
        [-68, -69, -15, -26, 51, 42, -19, -128, 19, -76, 21, 19],
        [-2, 0, -2, 1, 1, 1, 4, -2],
        19619,
        -0.022552490234375,
    ),
}


def gaussian(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)) * 0.02


def weight():
    """Two rows as they come, one below the smallest scale, one of zeros."""
    found = gaussian(4, 64)
    found[2] *= 1e-5
    found[3] = 0
    return found


def stored(dense, **settings):
    return TorchaoInt8(dense, None, TorchaoInt8.Config(method="torchao_int8", **settings))


@each(("dtype", "size"), list(LIBRARY))
def test_scales_codes_and_weights_are_those_of_the_library(dtype, size):
    scales, first, small, places, read = LIBRARY[dtype, size]
    layer = stored(weight().to(dtype), group_size=size)
    assert layer.scale.flatten()[: len(scales)].tolist() == [float.fromhex(scale) for scale in scales]
    assert layer.codes[0, : len(first)].tolist() == first
    assert layer.codes[2, : len(small)].tolist() == small
    assert (layer.codes.flatten().long() * torch.arange(1, 4 * 64 + 1)).sum() == places
    assert layer.weight()[0, 0].item() == read


def test_the_installed_library_makes_the_same_bits():
    torchao = pytest.importorskip("torchao.quantization")
    shapes = [((48, 96), None), ((48, 96), 32), ((64, 256), 128), ((5, 66), 11), ((1, 3), None)]
    for dtype in (FP32, BF16, FP16):
        for shape, size in shapes:
            linear = torch.nn.Linear(shape[1], shape[0], bias=False, dtype=dtype)
            linear.weight.data = dense = gaussian(*shape, seed=shape[0]).to(dtype)
            kind = torchao.PerGroup(size) if size else torchao.PerRow()
            config = torchao.Int8WeightOnlyConfig(granularity=kind, set_inductor_config=False)
            torchao.quantize_(linear, config)
            theirs, ours = linear.weight, stored(dense, group_size=size)
            assert torch.equal(ours.codes, theirs.qdata)
            assert torch.equal(ours.scale, theirs.scale)
            assert not theirs.zero_point.any()
            assert torch.equal(ours.weight(), theirs.dequantize())


def test_a_weight_is_the_nearest_of_its_row_and_the_largest_at_most_half_a_step_off():
    dense = gaussian(64, 40, seed=3)
    layer = stored(dense)
    largest = dense.abs().amax(1, keepdim=True).double()
    assert ((dense * 127.5 / largest - layer.codes).abs() <= 0.5 + 1e-4).all()
    torch.testing.assert_close(layer.weight().double(), layer.codes * largest / 127.5)
    at_the_ends = layer.codes.gather(1, dense.abs().argmax(1, keepdim=True))
    assert set(at_the_ends.flatten().tolist()) == {127, -127, -128}


@each("size", [None, 16, 48])
def test_what_is_written_as_it_was_read_keeps_its_codes(size):
    layer = stored(gaussian(8, 100), group_size=size)
    codes, scale, read = layer.codes.clone(), layer.scale.clone(), layer.weight()
    changed = read.clone()
    changed[5] *= 3
    layer.write(changed)
    rows = torch.arange(8) != 5
    assert layer.edited
    assert torch.equal(layer.codes[rows], codes[rows])
    assert torch.equal(layer.scale[rows], scale[rows])
    fresh = stored(changed, group_size=size)
    assert torch.equal(layer.weight()[5], fresh.weight()[5])
    assert not torch.equal(fresh.weight()[rows], read[rows])  # what a plain encoding would have lost


def test_a_short_last_group_is_that_of_its_own_weights():
    dense = gaussian(3, 80)
    layer, alone = stored(dense, group_size=64), stored(dense[:, 64:])
    assert torch.equal(layer.codes[:, 64:], alone.codes)
    assert torch.equal(layer.weight()[:, 64:], alone.weight())


@each(("size", "held"), [(None, 64), (32, 64 * 8), (128, 64 * 2)])
def test_a_weight_takes_a_byte_and_a_group_four(size, held):
    layer = stored(gaussian(64, 256), group_size=size)
    assert layer.stored_bytes == 64 * 256 + 4 * held
    if size:
        assert layer.stored_bytes * 8 / (64 * 256) == TorchaoInt8.bits(layer.config) == 8 + 32 / size


@each("width", [48, 40])
def test_the_backward_keeps_no_dense_weight(width):
    layer, kept = stored(gaussian(64, width), group_size=16), []
    x = torch.randn(3, width, requires_grad=True)
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t.nbytes) or t, lambda t: t):
        y = layer(x)
    y.sum().backward()
    assert kept == []
    torch.testing.assert_close(x.grad, layer.weight().sum(0).expand(3, -1))
