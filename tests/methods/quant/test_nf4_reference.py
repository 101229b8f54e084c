"""The reference formats against bitsandbytes, bit by bit, and the known facts about NF4."""

import pytest
import torch
from bitsandbytes import functional as bnb

from lrft.methods.quant.int8_reference import dequantize_rows, quantize_rows
from lrft.methods.quant.nf4_reference import (
    LEVELS,
    NF4Reference,
    compress_scales,
    dequantize_blocks,
    dynamic_map,
    expand_scales,
    quantize_blocks,
)

DTYPES = [torch.float32, torch.bfloat16, torch.float16]
SHAPES = [(128, 192), (64, 96), (7, 13), (5, 66)]

every_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=["fp32", "bf16", "fp16"])


def gaussian(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)) * 0.02


def relative(found, expected):
    return ((found - expected).norm() / expected.norm()).item()


def test_the_levels_are_quantiles_of_a_normal_distribution():
    def quantiles(count):
        return torch.special.ndtri(torch.linspace(0.9677083, 0.5, count)[:-1])

    levels = torch.cat([quantiles(9), torch.zeros(1), -quantiles(8)]).sort().values
    torch.testing.assert_close(levels / levels.max(), torch.tensor(LEVELS), atol=2e-7, rtol=0)
    assert torch.equal(torch.tensor(LEVELS), bnb.get_4bit_type("nf4", device="cpu"))


def test_the_dynamic_map_is_that_of_bitsandbytes():
    assert torch.equal(dynamic_map(), bnb.create_dynamic_map(signed=True))
    assert (dynamic_map() == 0).sum() == 1
    assert dynamic_map()[0].item() == pytest.approx(-0.99297, abs=1e-5)


@every_dtype
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("block_size", [32, 64, 128])
def test_packed_codes_and_scales_equal_those_of_bitsandbytes(dtype, shape, block_size):
    weight = gaussian(*shape).to(dtype)
    codes, state = bnb.quantize_4bit(weight, blocksize=block_size, quant_type="nf4")
    own_codes, own_scales = quantize_blocks(weight, block_size)
    assert torch.equal(own_codes, codes)
    assert torch.equal(own_scales, state.absmax)


@every_dtype
def test_decoded_weights_equal_those_of_bitsandbytes(dtype):
    weight = gaussian(128, 192).to(dtype)
    codes, state = bnb.quantize_4bit(weight, blocksize=64, quant_type="nf4")
    own = dequantize_blocks(codes, state.absmax, 64, weight.shape).to(dtype)
    assert torch.equal(own, bnb.dequantize_4bit(codes, state))


def test_a_tie_goes_to_the_lower_level_and_the_first_code_to_the_high_nibble():
    levels = torch.tensor(LEVELS)
    middle = (levels[9] + levels[10]) / 2
    packed, _ = quantize_blocks(torch.tensor([1.0, middle, torch.nextafter(middle, levels[15])]), 64)
    assert packed.flatten().tolist() == [15 << 4 | 9, 10 << 4 | 7]  # the odd tail is padded with the level 0


@every_dtype
def test_double_quantization_differs_from_bitsandbytes_by_at_most_a_neighbouring_code(dtype):
    weight = gaussian(512, 1024).to(dtype)
    codes, state = bnb.quantize_4bit(weight, blocksize=64, quant_type="nf4", compress_statistics=True)
    own_codes, scales = quantize_blocks(weight, 64)
    codes8, offset, absmax2 = compress_scales(scales)
    assert torch.equal(own_codes, codes)
    assert torch.equal(offset, state.offset)
    assert torch.equal(absmax2, state.state2.absmax)
    assert (codes8.int() - state.absmax.int()).abs().max() <= 1
    with_theirs = dequantize_blocks(codes, expand_scales(state.absmax, offset, absmax2), 64, weight.shape)
    assert torch.equal(with_theirs.to(dtype), bnb.dequantize_4bit(codes, state))


def test_a_block_of_zeros_has_scale_zero_and_the_code_of_zero():
    weight = gaussian(2, 64)
    weight[1] = 0
    packed, scales = quantize_blocks(weight, 64)
    theirs, state = bnb.quantize_4bit(weight, blocksize=64, quant_type="nf4")
    assert scales[1] == 0 and state.absmax[1] == 0
    assert packed.flatten()[32:].tolist() == [0x77] * 32
    assert torch.equal(packed, theirs)


@every_dtype
def test_without_double_quantization_requantizing_changes_nothing(dtype):
    once = NF4Reference(gaussian(64, 128).to(dtype), None, NF4Reference.Config(double_quant=False))
    twice = NF4Reference(once.weight(), None, once.config)
    assert torch.equal(once.weight(), twice.weight())


def test_double_quantization_drifts_when_repeated_but_keeps_the_codes():
    once = NF4Reference(gaussian(256, 512))
    twice = NF4Reference(once.weight())
    assert torch.equal(once.codes, twice.codes)
    drift = (once.weight() - twice.weight()).abs().max()
    assert 0 < drift < 1e-4


def test_the_largest_weight_of_every_block_is_exact_without_double_quantization():
    weight = gaussian(64, 128)
    read = NF4Reference(weight, None, NF4Reference.Config(double_quant=False)).weight()
    blocks, decoded = weight.view(-1, 64), read.view(-1, 64)
    largest = blocks.abs().argmax(1, keepdim=True)
    # A negative maximum is level -1 and a positive one level 1, both exact.
    assert torch.equal(blocks.gather(1, largest), decoded.gather(1, largest))


@pytest.mark.parametrize("double_quant", [False, True])
def test_the_relative_error_on_normal_weights_is_0_092(double_quant):
    weight = gaussian(512, 1024)
    read = NF4Reference(weight, None, NF4Reference.Config(double_quant=double_quant)).weight()
    assert relative(read, weight) == pytest.approx(0.092, abs=0.0005)


@pytest.mark.parametrize(("double_quant", "bits"), [(True, 4 + 8 / 64 + 32 / (64 * 256)), (False, 4.5)])
def test_a_weight_takes_4_127_bits_or_4_5_without_double_quantization(double_quant, bits):
    layer = NF4Reference(gaussian(512, 1024), None, NF4Reference.Config(double_quant=double_quant))
    offset = 4 if double_quant else 0  # one float32 a matrix
    assert (layer.stored_bytes - offset) * 8 / (512 * 1024) == bits


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
def test_int8_codes_scales_and_weights_equal_those_of_bitsandbytes(dtype):
    weight = gaussian(64, 100).to(dtype)
    codes, scales, _ = bnb.int8_vectorwise_quant(weight)
    own_codes, own_scales = quantize_rows(weight)
    assert torch.equal(own_codes, codes)
    assert torch.equal(own_scales, scales)
    assert torch.equal(dequantize_rows(own_codes, own_scales), bnb.int8_vectorwise_dequant(codes, scales))
