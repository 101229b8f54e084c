"""NF4 in plain torch: the check on `nf4`, and a stand-in where bitsandbytes is missing."""

from __future__ import annotations

from functools import cache

import torch
from torch import Tensor
from torch.nn import functional as F

from lrft.methods.quant._encoded import Encoded
from lrft.registry.axes import QUANTIZERS
from lrft.registry.config import Field, MethodConfig

# Quantiles of a normal distribution, scaled to end at 1. The digits depend on the precision they are made in.
LEVELS = (
    -1.0,
    -0.6961928009986877,
    -0.5250730514526367,
    -0.39491748809814453,
    -0.28444138169288635,
    -0.18477343022823334,
    -0.09105003625154495,
    0.0,
    0.07958029955625534,
    0.16093020141124725,
    0.24611230194568634,
    0.33791524171829224,
    0.44070982933044434,
    0.5626170039176941,
    0.7229568362236023,
    1.0,
)
SCALES_PER_BLOCK = 256
SMALLEST = 1e-38  # keeps the inverse of an all-zero block's scale finite


@QUANTIZERS.register
class NF4Reference(Encoded):
    """NF4 written out in torch; same codes, scales and weights as `nf4`, and a stand-in without bitsandbytes.

        x = W / absmax(block) in [-1, 1]
        c = number of midpoints of levels strictly below x, so a tie goes down
        W ~ level[c] * absmax(block)
        absmax ~ map8[c8] * absmax2 + mean(absmax)      with `double_quant: true`

    with the levels and map8 of `nf4`, a block of `block_size` (64) consecutive weights, c8 the nearest of map8 to
    (absmax - mean(absmax)) / absmax2, in blocks of 256 scales.

    Shapes: W (out, in), n = out in weights; codes (ceil(n / 2), 1), two a byte, the first in the high nibble, an odd
    count padded with 0; absmax (ceil(n / block_size)).
    Bits: 4.127 a weight; 4.5 with `double_quant: false`.
    Source: Dettmers et al., "QLoRA", 2023, arXiv 2305.14314.
    Departures: none.
    """

    scales = ("absmax", "offset", "absmax2")
    codes: Tensor
    absmax: Tensor
    offset: Tensor | None
    absmax2: Tensor | None

    class Config(MethodConfig):
        double_quant: bool = Field(
            True, description="scales in 8 bits too: 4.127 bits a weight instead of 4.5"
        )
        block_size: int = Field(64, gt=0, le=2**20, multiple_of=2, description="weights that share a scale")

    config: Config

    def encode(self, weight: Tensor) -> None:
        codes, absmax = quantize_blocks(weight, self.config.block_size)
        offset = absmax2 = None
        if self.config.double_quant:
            absmax, offset, absmax2 = compress_scales(absmax)
        self.register_buffer("codes", codes)
        self.register_buffer("absmax", absmax)
        self.register_buffer("offset", offset)
        self.register_buffer("absmax2", absmax2)

    def weight(self) -> Tensor:
        absmax = self.absmax
        if self.offset is not None and self.absmax2 is not None:
            absmax = expand_scales(absmax, self.offset, self.absmax2)
        shape = (self.out_features, self.in_features)
        return dequantize_blocks(self.codes, absmax, self.config.block_size, shape).to(self.compute_dtype)


def quantize_blocks(weight: Tensor, block_size: int) -> tuple[Tensor, Tensor]:
    """From n weights to packed codes (ceil(n / 2), 1) uint8 and scales (ceil(n / block_size),) float32."""
    scaled, absmax = _scale_to_one(weight.reshape(-1).float(), block_size)
    levels = torch.tensor(LEVELS, device=weight.device)
    codes = torch.bucketize(F.pad(scaled, (0, len(scaled) % 2)), (levels[1:] + levels[:-1]) / 2).to(
        torch.uint8
    )
    return (codes[::2] << 4 | codes[1::2])[:, None], absmax


def dequantize_blocks(packed: Tensor, absmax: Tensor, block_size: int, shape: tuple[int, ...]) -> Tensor:
    """Packed codes and scales -> float32 weight of `shape`."""
    count = torch.Size(shape).numel()
    codes = torch.stack((packed >> 4, packed & 15), -1).reshape(-1)[:count]
    levels = torch.tensor(LEVELS, device=packed.device)
    return (levels[codes.long()] * absmax.repeat_interleave(block_size)[:count]).view(shape)


def compress_scales(absmax: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Double quantization of the scales (k,): codes (k,) uint8, offset (), second scales (ceil(k / 256),)."""
    offset = absmax.mean()
    scaled, absmax2 = _scale_to_one(absmax - offset, SCALES_PER_BLOCK)
    table = dynamic_map().to(absmax.device)
    return torch.bucketize(scaled, (table[1:] + table[:-1]) / 2).to(torch.uint8), offset, absmax2


def expand_scales(codes: Tensor, offset: Tensor, absmax2: Tensor) -> Tensor:
    """The scales (k,) float32 that double quantization kept."""
    table = dynamic_map().to(codes.device)
    return table[codes.long()] * absmax2.repeat_interleave(SCALES_PER_BLOCK)[: len(codes)] + offset


@cache
def dynamic_map() -> Tensor:
    """The signed 8-bit "dynamic" code book: 256 sorted float32 values from -0.99297 to 1, with one 0.

    For every power of ten from 1e-6 to 1, 2^i values (i = 0..6) of each sign: the middles of 2^i equal parts
    of [0.1, 1]. With 0 and 1 that makes 2 * 127 + 2.
    """
    values = [0.0, 1.0]
    for i in range(7):
        edges = torch.linspace(0.1, 1, 2**i + 1, dtype=torch.float32)
        middles = (10 ** (i - 6) * ((edges[:-1] + edges[1:]) / 2)).tolist()
        values += middles + [-middle for middle in middles]
    return torch.tensor(sorted(values), dtype=torch.float32)


def _scale_to_one(values: Tensor, block_size: int) -> tuple[Tensor, Tensor]:
    """(n,) -> values over their block's largest magnitude, (n,), and those magnitudes, (ceil(n / block),)."""
    count = len(values)
    blocks = F.pad(values, (0, -count % block_size)).view(-1, block_size)
    absmax = blocks.abs().amax(1)
    scaled = blocks * (1.0 / absmax.clamp(min=SMALLEST))[:, None]
    return scaled.clamp(-1, 1).reshape(-1)[:count], absmax
