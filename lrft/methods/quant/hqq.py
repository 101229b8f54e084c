"""HQQ: integers in groups whose zero points are fitted to the weight, without any data."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from lrft.methods.quant._codes import pack, unpack
from lrft.methods.quant._encoded import Encoded
from lrft.registry.axes import QUANTIZERS
from lrft.registry.config import Field, Literal, MethodConfig

STEPS, BETA, NORM = 20, 10.0, 0.7  # as the authors' code runs by default
NARROW, LARGEST = 1e-4, 2e4  # a range that counts as none, and the most steps a unit of weight


@QUANTIZERS.register
class HQQ(Encoded):
    """Half-quadratic quantization: integers in groups, whose zero points make the error sparse.

        W ~ (n - z) / t,  n = round(W t + z) in 0 ... 2^bits - 1,  t = (2^bits - 1) / (max W - min W),  z = -t min W
        20 times:  e = shrink(W - (n - z) / t),  z <- mean over the group of n - (W - e) t
        shrink(x) = sign(x) max(|x| - |x|^(p - 1) / b, 0),  p = 0.7, b = 10

    with a group `group_size` consecutive weights, row by row. The loop ends when the mean error of the matrix no longer
    falls; the z of its last step stays. No data is looked at.

    Shapes: W (out, in), m = out in weights in k = ceil(m / group_size) groups; n packed, eight in `bits` bytes; z and
    1 / t (k) in float16.
    Bits: bits + 32 / group_size a weight, 4.5 by default.
    Source: Badri and Shaji, "Half-Quadratic Quantization of Large Machine Learning Models", 2023, and the authors' code
    (mobiusml/hqq 0.2.8 with `axis: 1`), whose numbers a test holds.
    Departures: none in the numbers where groups are whole; the last may be short, which the code refuses. b does not
    grow, as in the code's default solver, where the text multiplies it by 1.01 a step.
    """

    scales = ("scale", "zero")
    codes: Tensor
    scale: Tensor
    zero: Tensor

    class Config(MethodConfig):
        bits: Literal[2, 3, 4, 8] = Field(4, description="bits a weight")
        group_size: int = Field(
            64, gt=0, le=2**20, description="consecutive weights that share a scale and a zero point"
        )

    config: Config

    @classmethod
    def bits(cls, config: Config) -> float:
        return config.bits + 32 / config.group_size

    def encode(self, weight: Tensor) -> None:
        flat, size = weight.reshape(-1).float(), self.config.group_size
        short = -len(flat) % size
        groups = torch.cat([flat, flat[-1:].expand(short)]).view(
            -1, size
        )  # which moves neither end of the group
        real = torch.ones_like(groups)
        real.view(-1)[len(flat) :] = 0
        found = fit(groups, real, 2**self.config.bits - 1)
        codes = found.codes(groups).view(-1)[: len(flat)].to(torch.uint8)
        self.register_buffer("codes", pack(codes, self.config.bits))
        self.register_buffer("scale", (1 / found.steps[:, 0]).half())
        self.register_buffer("zero", found.zero[:, 0].half())

    def weight(self) -> Tensor:
        count, size = self.out_features * self.in_features, self.config.group_size
        zero, scale = (part.float().repeat_interleave(size)[:count] for part in (self.zero, self.scale))
        dense = (unpack(self.codes, self.config.bits, count).float() - zero) * scale
        return dense.view(self.out_features, self.in_features).to(self.compute_dtype)


class Fitted(NamedTuple):
    """Steps a unit of weight and zero points, (groups, 1) each."""

    steps: Tensor
    zero: Tensor
    most: int

    def codes(self, groups: Tensor) -> Tensor:
        """The nearest n of every weight."""
        return (groups * self.steps + self.zero).round().clamp(0, self.most)


def fit(groups: Tensor, real: Tensor, most: int) -> Fitted:
    """The zero points that the loop ends with.

    Args:
        groups: weights (groups, size).
        real: 1 where a weight is one, 0 where a group is filled up.
    """
    low, high = groups.amin(1, keepdim=True), groups.amax(1, keepdim=True)
    width = high - low
    steps = torch.where(width <= NARROW, 1.0, most / width).clamp(max=LARGEST)
    found, best = Fitted(steps, -low * steps, most), torch.tensor(torch.inf)
    for _ in range(STEPS):
        codes = found.codes(groups)
        missing = (groups - (codes - found.zero) / steps) * real
        wanted = codes - (groups - shrink(missing)) * steps
        found = found._replace(zero=(wanted * real).sum(1, keepdim=True) / real.sum(1, keepdim=True))
        error = missing.abs().sum() / real.sum()
        if not error < best:
            break
        best = error
    return found


def shrink(x: Tensor) -> Tensor:
    """Towards 0, small numbers all the way."""
    size = x.abs()
    return x.sign() * (size - size.pow(NORM - 1) / BETA).clamp_min(0)
