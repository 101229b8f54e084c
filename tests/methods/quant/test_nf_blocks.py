"""Blockwise NormalFloat against numbers of the LQ-LoRA authors' code, and its storage to the bit."""

import itertools

import pytest
import torch

from lrft.methods.quant.nf4_reference import LEVELS
from lrft.methods.quant.nf_blocks import NFBlocks, normal_levels, pack, unpack

BITS = [2, 3, 4, 8]


def fixed(out, width, seed=0):
    """A weight that needs no random generator."""
    i = torch.arange(out * width, dtype=torch.float64) + seed
    return (torch.sin(i * 12.9898 + 0.3) * torch.sin(i * i * 0.7391 + 0.1)).float().view(out, width) * 0.05


def gaussian(*shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0)) * 0.02


def stored(weight, **settings):
    return NFBlocks(weight, None, NFBlocks.Config(**settings))


def test_the_levels_are_the_papers():
    torch.testing.assert_close(normal_levels(2), torch.tensor([-1, 0, 0.3379, 1]), atol=5e-5, rtol=0)
    three = torch.tensor([-1, -0.4786, -0.2171, 0, 0.1609, 0.3379, 0.5626, 1])
    torch.testing.assert_close(normal_levels(3), three, atol=5e-5, rtol=0)
    torch.testing.assert_close(normal_levels(4), torch.tensor(LEVELS), atol=2e-7, rtol=0)


@pytest.mark.parametrize("bits", BITS)
def test_there_are_2_to_the_b_levels_from_minus_1_to_1_with_an_exact_0(bits):
    levels = normal_levels(bits)
    assert len(levels) == 2**bits and (levels.diff() > 0).all()
    assert (levels == 0).sum() == 1
    torch.testing.assert_close(levels[[0, -1]], torch.tensor([-1.0, 1.0]), atol=2e-7, rtol=0)


# Sums of squares of the decoded weight and of its error, and its first three numbers, of the authors' `blockwise-nf`.
@pytest.mark.parametrize(
    ("config", "squares", "error", "first"),
    [
        ((2, 2, "bfloat16", 16, 16), 6.385612701, 0.815779636, [0.0, 0.0168662, 0.0]),
        ((3, 4, "float16", 32, 16), 5.451808801, 0.167982721, [0.0, 0.0272366, 0.0]),
        ((4, 8, "float32", 64, 128), 5.227461302, 0.044565498, [0.0, 0.0217688, 0.0039309]),
        ((8, 3, "bfloat16", 64, 16), 5.148863427, 0.000173752, [0.0014672, 0.024585, 0.0039248]),
        ((3, 8, "float32", 16, 64), 5.416118903, 0.148399460, [0.0, 0.0273001, 0.0]),
    ],
    ids=str,
)
def test_decoded_weights_are_those_of_the_authors_code(config, squares, error, first):
    names = ("bits", "scale_bits", "second_dtype", "block_size", "scales_per_block")
    weight = fixed(64, 128)
    read = stored(weight, **dict(zip(names, config, strict=True))).weight()
    assert read.double().square().sum().item() == pytest.approx(squares, rel=1e-6)
    assert (weight - read).double().square().sum().item() == pytest.approx(error, rel=1e-6)
    torch.testing.assert_close(read.flatten()[:3], torch.tensor(first), atol=1e-7, rtol=0)


@pytest.mark.parametrize(
    ("b", "b0", "b1", "B0", "B1"),
    [
        *itertools.product(BITS, [2, 8], ["bfloat16", "float32"], [16, 64], [16, 256]),
        (3, 3, "float16", 32, 64),
    ],
)
def test_a_weight_takes_exactly_the_papers_bits_and_a_matrix_one_number_more(b, b0, b1, B0, B1):
    layer = stored(
        torch.empty(256, 128).normal_(),
        bits=b,
        scale_bits=b0,
        second_dtype=b1,
        block_size=B0,
        scales_per_block=B1,
    )
    second = 32 if b1 == "float32" else 16
    assert 8 * (layer.stored_bytes - 4) / (256 * 128) == b + b0 / B0 + second / (B0 * B1)


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("count", [1, 7, 8, 9, 1000])
def test_packed_codes_come_back(bits, count):
    codes = torch.randint(2**bits, (count,), generator=torch.Generator().manual_seed(count)).to(torch.uint8)
    packed = pack(codes, bits)
    assert packed.dtype == torch.uint8 and len(packed) <= -(-count // 8) * bits
    assert torch.equal(unpack(packed, bits, count), codes)


def test_every_weight_is_at_the_level_nearest_to_it():
    """Against the definition, weight by weight: the scale its block ended up with times every level."""
    weight = fixed(8, 64)
    for bits in BITS:
        layer = stored(weight, bits=bits, block_size=16, scales_per_block=8)
        read = layer.weight().view(-1, 16)
        for block, decoded in zip(weight.view(-1, 16), read, strict=True):
            scale = decoded.abs().max()  # the largest weight of a block sits at an end
            options = (scale / normal_levels(bits).abs().max()) * normal_levels(bits)
            best = (block[:, None] - options).abs().min(dim=1).values
            assert ((block - decoded).abs() <= best + 1e-6).all()


def test_more_bits_mean_less_error_at_the_rates_of_normal_weights():
    weight = gaussian(512, 512)
    errors = [((stored(weight, bits=b).weight() - weight).norm() / weight.norm()).item() for b in BITS]
    assert errors[2] == pytest.approx(0.0921, abs=5e-4)  # NF4 with double quantization
    assert errors[0] > errors[1] > errors[2] > errors[3]
    coarse = stored(weight, bits=3, scale_bits=2).weight()
    fine = stored(weight, bits=3, scale_bits=8).weight()
    assert (fine - weight).norm() < (coarse - weight).norm()


def test_scales_are_whole_steps_above_the_smallest_one():
    """With two bits three steps of 1 lead from 1 to 4, and the weights are coded against those scales."""
    weight = torch.tensor([1.0, 1.4, 2.6, 4.0])[:, None].expand(4, 16)
    read = stored(weight, scale_bits=2, block_size=16, scales_per_block=4).weight()
    torch.testing.assert_close(read[:, 0], torch.tensor([1.0, 1.0, 3.0, 4.0]), atol=1e-6, rtol=0)


def test_a_block_of_zeros_costs_the_others_nothing():
    weight = gaussian(8, 64)
    alone = stored(weight[1:], scale_bits=2)
    weight[0] = 0
    beside = stored(weight, scale_bits=2)
    assert not beside.weight()[0].any()
    assert torch.equal(beside.offset, alone.offset)
    torch.testing.assert_close(beside.weight()[1:], alone.weight())


def test_codes_and_scales_stay_as_they_are_when_the_model_is_cast():
    layer = stored(gaussian(64, 64), second_dtype="bfloat16")
    before = {key: tensor.dtype for key, tensor in layer.state_dict().items()}
    layer.half()
    assert {key: tensor.dtype for key, tensor in layer.state_dict().items()} == before
    assert layer.weight().dtype == torch.float16
