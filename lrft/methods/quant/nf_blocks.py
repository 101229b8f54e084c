"""Blockwise NormalFloat of 2, 3, 4 or 8 bits with doubly quantized scales, the storage of LQ-LoRA."""

from __future__ import annotations

from functools import cache

import torch
from torch import Tensor
from torch.nn import functional as F

from lrft.methods.quant._codes import pack, unpack
from lrft.methods.quant._encoded import Encoded
from lrft.registry.axes import QUANTIZERS
from lrft.registry.config import Field, Literal, MethodConfig

TAIL = 0.9677083  # the outermost quantiles, as in NF4
SMALLEST = 2.0**-100  # keeps the step of a block of equal scales finite
SECOND_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


@QUANTIZERS.register
class NFBlocks(Encoded):
    """Blockwise NormalFloat of 2, 3, 4 or 8 bits with integer block scales, the storage of LQ-LoRA.

        W ~ level[c] * scale(block)
        scale ~ min + c0 * absmax2 / (2^b0 - 1),  c0 in 0 ... 2^b0 - 1

    with b = `bits`, b0 = `scale_bits`, b1 the bits of `second_dtype`, B0 = `block_size`, B1 = `scales_per_block`; a
    block B0 consecutive weights, row by row, c the nearest of 2^b levels; B1 scales share one absmax2, kept in b1 bits.
    min is the smallest absmax of a block in the matrix, absmax2 the largest absmax - min; W is coded against the
    decoded scale. Levels: 2^(b-1) quantiles of a normal distribution from 1 - 0.9677083 to 1/2 and 2^(b-1) + 1 from
    there to 0.9677083, with an exact 0 and ends at -1 and 1; for b = 2: -1, 0, 0.3379, 1.

    Shapes: W (out, in), n = out in weights; codes (b ceil(n / 8)) bytes; scale codes likewise for the ceil(n / B0)
    blocks.
    Bits: b + b0/B0 + b1/(B0 B1) a weight, 4.127 by default, and one float32 (min) a matrix.
    Source: Guo et al., "LQ-LoRA", 2023, arXiv 2311.12023, coded as in the authors' code.
    Departures: a matrix need not be a whole number of blocks, and blocks of zeros do not count for min, without which
    one such block would cost the others their scales.
    """

    scales = ("offset", "absmax2")
    codes: Tensor
    scale_codes: Tensor
    offset: Tensor
    absmax2: Tensor

    class Config(MethodConfig):
        bits: Literal[2, 3, 4, 8] = Field(4, description="bits a weight")
        scale_bits: Literal[2, 3, 4, 8] = Field(8, description="bits of a block's scale")
        second_dtype: Literal["float32", "bfloat16", "float16"] = Field(
            "float32", description="precision of the scales of the scales"
        )
        block_size: int = Field(64, gt=0, le=2**20, description="weights that share a scale")
        scales_per_block: int = Field(256, gt=0, le=2**20, description="scales that share a second scale")

    config: Config

    def encode(self, weight: Tensor) -> None:
        config = self.config
        flat = weight.reshape(-1).float()
        codes, offset, absmax2 = compress_scales(
            block_maxima(flat, config.block_size),
            config.scale_bits,
            config.scales_per_block,
            SECOND_DTYPES[config.second_dtype],
        )
        scales = expand_scales(codes, offset, absmax2, config.scale_bits, config.scales_per_block)
        self.register_buffer("codes", pack(nearest_levels(flat, scales, config), config.bits))
        self.register_buffer("scale_codes", pack(codes, config.scale_bits))
        self.register_buffer("offset", offset)
        self.register_buffer("absmax2", absmax2)

    def weight(self) -> Tensor:
        config, count = self.config, self.out_features * self.in_features
        blocks = -(-count // config.block_size)
        scales = expand_scales(
            unpack(self.scale_codes, config.scale_bits, blocks),
            self.offset,
            self.absmax2,
            config.scale_bits,
            config.scales_per_block,
        )
        levels = normal_levels(config.bits).to(self.codes.device)
        dense = levels[unpack(self.codes, config.bits, count).long()]
        dense *= scales.repeat_interleave(config.block_size)[:count]
        return dense.view(self.out_features, self.in_features).to(self.compute_dtype)


@cache
def normal_levels(bits: int) -> Tensor:
    """The 2^bits NormalFloat levels, sorted, float32: quantiles in float32 as the authors', evaluated in float64."""
    half = 2 ** (bits - 1)
    left = torch.linspace(1 - TAIL, 0.5, half)[:-1]
    right = torch.linspace(0.5, TAIL, half + 1)
    end = torch.special.erfinv(torch.tensor(2 * TAIL - 1, dtype=torch.float64))
    levels: Tensor = (torch.special.erfinv(2 * torch.cat([left, right]).double() - 1) / end).float()
    return levels


def block_maxima(flat: Tensor, block_size: int) -> Tensor:
    """Largest magnitude of every block of a flat (n,) tensor, (ceil(n / block_size),)."""
    return F.pad(flat, (0, -len(flat) % block_size)).view(-1, block_size).abs().amax(1)


def compress_scales(
    absmax: Tensor, bits: int, per_block: int, second_dtype: torch.dtype
) -> tuple[Tensor, Tensor, Tensor]:
    """Scales (k,) as codes (k,) uint8, their minimum (), and second scales (ceil(k / per_block),)."""
    used = absmax[absmax > 0]
    offset = used.min() if len(used) else absmax.new_zeros(())
    above = (absmax - offset).clamp_min(0)
    largest = torch.finfo(second_dtype).max
    absmax2 = block_maxima(above, per_block).clamp(max=largest).to(second_dtype)
    steps = _codes_per_unit(absmax2, bits).repeat_interleave(per_block)[: len(above)]
    return (above * steps).round().clamp(0, 2**bits - 1).to(torch.uint8), offset, absmax2


def expand_scales(codes: Tensor, offset: Tensor, absmax2: Tensor, bits: int, per_block: int) -> Tensor:
    """The scales (k,) float32 that `compress_scales` kept."""
    steps = _codes_per_unit(absmax2, bits).repeat_interleave(per_block)[: len(codes)]
    return torch.where(steps > 0, codes / steps, 0.0) + offset


def nearest_levels(flat: Tensor, scales: Tensor, config: NFBlocks.Config) -> Tensor:
    """Codes (n,) uint8 of the levels nearest to flat / scale; a tie goes to the lower level."""
    levels = normal_levels(config.bits).to(flat.device)
    each = scales.repeat_interleave(config.block_size)[: len(flat)]
    scaled = torch.where(each > 0, flat / each, 0.0)
    return torch.bucketize(scaled, (levels[1:] + levels[:-1]) / 2).to(torch.uint8)


def _codes_per_unit(absmax2: Tensor, bits: int) -> Tensor:
    """Code steps per unit of scale, float32, 0 where all the block's scales are the minimum."""
    exact = absmax2.float()
    return torch.where(exact > SMALLEST, (2**bits - 1) / exact, 0.0)
