"""Q4_0: blocks of 32 weights with one scale, the 4-bit storage that every llama.cpp reads."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from lrft.core.levels import Levelled
from lrft.methods.quant._encoded import Encoded
from lrft.ops.levels import Levels, search_scales
from lrft.registry.axes import QUANTIZERS
from lrft.registry.config import MethodConfig

BLOCK = 32
HALF = 8  # codes below 0


@QUANTIZERS.register
class Q40(Encoded, Levelled):
    """Sixteen evenly spaced numbers a block, the storage Q4_0 of GGUF files, as llama.cpp's quantizer makes it.

        W ~ d (n - 8),  n in 0 ... 15
        d = w / -8,  w the entry of largest magnitude of the block, with its sign
        n = floor(W / d + 8.5), at most 15

    with a block 32 consecutive weights of a row; d is rounded to float16 behind n. The largest entry is exact up to
    that. A row that is no whole number of blocks is filled up with zeros, and no GGUF file holds such a layer.

    Shapes: W (out, in); blocks (out, 18 ceil(in / 32)) bytes: d in two, then of n 16 bytes, byte j with entry j in its
    low half and entry j + 16 in its high one.
    Bits: 4 + 16/32 = 4.5 a weight. Relative error on normally distributed weights: 0.087.
    Source: llama.cpp and its `gguf` library (`quants.Q4_0`), compared byte for byte.
    Departures: none in the bytes; the matmul is in the dtype of the activations, which llama.cpp rounds to 8 bits.
    """

    aliases = {
        "gguf_q4 ggml_q4": "quantization: q4_0",
    }
    provides = {"rounded_base", "file_levels"}
    file_type = "Q4_0"
    blocks: Tensor

    class Config(MethodConfig):
        pass

    config: Config

    @classmethod
    def bits(cls, config: MethodConfig) -> float:
        return 4 + 16 / BLOCK

    def encode(self, weight: Tensor) -> None:
        rows = self._in_blocks(weight.float())
        largest = rows.gather(-1, rows.abs().argmax(-1, keepdim=True))
        scale = largest / -HALF
        inverse = torch.where(scale == 0, 0.0, 1 / scale)
        codes = (rows * inverse + (HALF + 0.5)).floor().clamp(0, 2 * HALF - 1)
        self._store(scale[..., 0].half(), codes)

    def weight(self) -> Tensor:
        scale, codes = self._read()
        dense = (codes.float() - HALF) * scale.float()[..., None]
        return dense.flatten(1)[:, : self.in_features].to(self.compute_dtype)

    def search(self, weight: Tensor, cost: Tensor) -> None:
        """The levels are not symmetric, so that scales of both signs are tried."""
        rows, price = self._in_blocks(weight.float()), cost.view(-1, BLOCK)
        levels = Levels(self._levels() / HALF)
        best, least = torch.zeros(rows.shape[:2]), torch.full(rows.shape[:2], torch.inf)
        for sign in (1, -1):
            scale = (sign * search_scales(sign * rows, price, levels) / HALF).half().float()
            unit = HALF * scale[..., None]
            error = (rows - unit * levels.nearest(rows / unit)).square_().mul_(price).sum(-1)
            best, least = torch.where(error < least, scale, best), torch.minimum(error, least)
        self._store(best.half(), self._read()[1])

    def grid(self) -> tuple[Tensor, Tensor]:
        scale = self._read()[0].float().repeat_interleave(BLOCK, 1)
        return scale[:, : self.in_features], self._levels()

    def take(self, codes: Tensor) -> None:
        self._store(self._read()[0], self._in_blocks(codes))

    @classmethod
    def fits(cls, config: MethodConfig, out_features: int, in_features: int) -> bool:
        return in_features % BLOCK == 0

    def _levels(self) -> Tensor:
        return torch.arange(2.0 * HALF, device=self.blocks.device) - HALF

    def _in_blocks(self, rows: Tensor) -> Tensor:
        """(out, in) -> (out, blocks, 32)."""
        found: Tensor = F.pad(rows, (0, -self.in_features % BLOCK)).unflatten(1, (-1, BLOCK))
        return found

    def _held_scales(self) -> list[Tensor]:
        return [self._read()[0]]

    def _store(self, scale: Tensor, codes: Tensor) -> None:
        """Scales (out, blocks) in float16, codes (out, blocks, 32)."""
        low, high = codes.to(torch.uint8).split(BLOCK // 2, -1)
        parts = torch.cat([scale.contiguous()[..., None].view(torch.uint8), low | high << 4], -1)
        self.register_buffer("blocks", parts.flatten(1).contiguous())

    def _read(self) -> tuple[Tensor, Tensor]:
        parts = self.blocks.unflatten(1, (-1, 2 + BLOCK // 2))
        halves = parts[..., 2:]
        scale = parts[..., :2].contiguous().view(torch.float16)[..., 0]
        return scale, torch.cat([halves & 15, halves >> 4], -1)
