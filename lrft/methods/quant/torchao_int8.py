"""torchao's int8 weights: 127.5 steps to the largest weight of a row or of a group, number for number."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from lrft.methods.quant._encoded import Encoded
from lrft.registry.axes import QUANTIZERS
from lrft.registry.config import Field, MethodConfig

LEAST, MOST = -128, 127  # codes
SMALLEST = 2.0**-23  # scale: float32's epsilon, whatever the weight is in


@QUANTIZERS.register
class TorchaoInt8(Encoded):
    """8-bit integers as torchao's weight-only quantization makes them, one scale a row or a group.

        s = max(max |W| / 127.5, 2^-23),  c = round(W * (1 / s)) in -128 ... 127
        W ~ c s

    with max |W| over a row, or over `group_size` inputs of it; it and s are rounded to the dtype of W, c is not. The
    largest weight lies half way between two codes: a positive one is read 0.4 % too small, 127 s, a negative one as
    -127 s or -128 s. s is never below 2^-23, so weights below 6e-8 become zeros.

    Shapes: W, codes c (out, in) in 8 bits; s (out, groups) in float32.
    Bits: 8 + 32 / group_size a weight, 8 + 32 / in with a scale a row, the default.
    Source: `Int8WeightOnlyConfig` of torchao 0.18.0 with `PerRow` or `PerGroup`, whose codes, scales and decoded
    weights these are bit for bit in float32, bfloat16 and float16; a test holds its numbers.
    Departures: the library is not needed, so that another version of it cannot change what a run was trained on. Its
    zero points, all 0, are not stored; the last group of a row may be short, which it refuses; and rows or groups that
    are written back as they were read keep their codes, where it would shrink them by 0.4 % each time.
    """

    aliases = {
        "torchao int8wo int8_weight_only int8_weight_only_config ao_int8": "quantization: torchao_int8",
    }

    lighter = "nf4"
    scales = ("scale",)
    codes: Tensor
    scale: Tensor

    class Config(MethodConfig):
        group_size: int | None = Field(
            None, gt=0, le=2**20, description="inputs that share a scale; null: a whole row"
        )

    config: Config

    @classmethod
    def bits(cls, config: Config) -> float:
        """With a scale a row, that scale is left out: it is a few thousandths of a bit."""
        return 8 + (32 / config.group_size if config.group_size else 0)

    def encode(self, weight: Tensor) -> None:
        groups = self._grouped(weight)
        scale = (groups.abs().amax(-1) / (MOST + 0.5)).clamp_min(SMALLEST).float()
        codes = (groups * (1 / scale)[..., None]).round().clamp(LEAST, MOST)
        self._store(codes.to(torch.int8), scale)

    def weight(self) -> Tensor:
        dense = (self._grouped(self.codes) * self.scale[..., None]).flatten(1)[:, : self.in_features]
        return dense.to(self.compute_dtype).contiguous()

    def write(self, weight: Tensor) -> None:
        codes, scale = self._grouped(self.codes), self.scale
        read, written = (self._grouped(w) for w in (self.weight(), weight.to(self.compute_dtype)))
        same = (read == written).all(-1)
        super().write(weight)
        self._store(
            torch.where(same[..., None], codes, self._grouped(self.codes)),
            torch.where(same, scale, self.scale),
        )

    def _store(self, codes: Tensor, scale: Tensor) -> None:
        """Take codes (out, groups, size), filled up where the last group is short, and scales (out, groups)."""
        self.register_buffer("codes", codes.flatten(1)[:, : self.in_features].contiguous())
        self.register_buffer("scale", scale.contiguous())

    def _grouped(self, matrix: Tensor) -> Tensor:
        """(out, in) -> (out, groups, size), the last group filled up with zeros."""
        size = self.config.group_size or self.in_features
        short = -self.in_features % size
        groups: Tensor = (F.pad(matrix, (0, short)) if short else matrix).unflatten(1, (-1, size))
        return groups
