"""Integers in groups with a scale and a zero point each: what GPTQ and AWQ checkpoints hold, and plain rounding."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Self

import torch
from torch import Tensor
from torch.nn import functional as F

from lrft.core.foreign import Foreign
from lrft.core.levels import Levelled
from lrft.core.on_grid import InGroups
from lrft.methods.quant._codes import pack, unpack
from lrft.methods.quant._encoded import Encoded
from lrft.methods.quant._int_layouts import BITS, WORD, Integers, gptq_tensors, read_integers, settings_said
from lrft.ops.levels import Levels, search_scales
from lrft.registry.axes import QUANTIZERS
from lrft.registry.config import Field, Literal, MethodConfig
from lrft.registry.errors import UsageError
from lrft.registry.json import Json


@QUANTIZERS.register
class IntGroups(Encoded, Foreign, Levelled):
    """Integers in groups with a scale and a zero point each, as GPTQ and AWQ checkpoints hold them.

        W_ij = s_g (n_ij - z_g),  n, z in 0 ... 2^bits - 1,  g the group of input j in row i

    with `group_size` inputs a group, a whole row where it is null. A checkpoint of GPTQ (also with `desc_act`, where
    the groups of the inputs are listed) or of AWQ is taken as it is: the integers bit for bit, s as it was stored. What
    is not in a checkpoint is rounded to nearest: z = 2^(bits - 1), s = max |W| of the group / (z - 1), so the largest
    is exact, and n = round(W / s) + z. That is neither GPTQ nor AWQ, which look at data. `lrft merge --requantize
    int_groups` writes GPTQ's layout, n rounded with error feedback on data and s searched, in float16.

    Shapes: W (out, in); n packed, eight in `bits` bytes; z (out, groups) in 8 bits, s (out, groups) in float32, in
    float16 from checkpoints; of `desc_act` the group of every input (in) in 32 bits.
    Bits: bits + 40 / group_size a weight, 4.31 by default; with s of a checkpoint bits + 24 / group_size.
    Source: Frantar et al., "GPTQ", ICLR 2023, arXiv 2210.17323, and Lin et al., "AWQ", MLSys 2024, arXiv 2306.00978:
    the layouts of the tensors, not the methods.
    Departures: weights are decoded, never multiplied by a kernel for few bits; 3 bits of checkpoints, whose integers
    run across words, are not read.
    """

    provides = {"rounded_base", "integer_levels"}
    layer_keys = ("qweight", "qzeros", "scales", "g_idx")
    scales = ("scale",)
    codes: Tensor
    zero: Tensor
    scale: Tensor
    group: Tensor | None

    class Config(MethodConfig):
        bits: Literal[2, 3, 4, 8] = Field(4, description="bits a weight")
        group_size: int | None = Field(
            128, gt=0, le=2**20, description="inputs that share a scale; null: a whole row"
        )

    config: Config

    @classmethod
    def bits(cls, config: Config) -> float | None:
        return None if config.group_size is None else config.bits + 40 / config.group_size

    def encode(self, weight: Tensor) -> None:
        if weight.is_meta:  # `unpack` brings the integers
            return
        size, middle = self._size, 2 ** (self.config.bits - 1)
        padded = F.pad(weight.float(), (0, -self.in_features % size)).unflatten(1, (-1, size))
        scale = padded.abs().amax(-1) / max(1, middle - 1)
        steps = torch.where(scale > 0, 1 / scale, 0.0)[..., None]
        codes = (padded * steps).round().clamp(-middle, middle - 1) + middle
        codes = codes.flatten(1)[:, : self.in_features].to(torch.uint8)
        self._store(Integers(codes, torch.full_like(scale, middle, dtype=torch.uint8), scale, None))

    def weight(self) -> Tensor:
        count = self.out_features * self.in_features
        codes = unpack(self.codes, self.config.bits, count).view(self.out_features, self.in_features)
        if self.group is None:
            size = self._size
            zero, scale = (
                part.repeat_interleave(size, 1)[:, : self.in_features] for part in (self.zero, self.scale)
            )
        else:
            zero, scale = self.zero[:, self.group], self.scale[:, self.group]
        return ((codes.float() - zero.float()) * scale.float()).to(self.compute_dtype)

    @property
    def _size(self) -> int:
        """Inputs a group."""
        return min(self.config.group_size or self.in_features, self.in_features)

    @classmethod
    def held_by(cls, said: Mapping[str, Any]) -> dict[str, Json] | None:
        return settings_said(said)

    @classmethod
    def dense_shape(cls, shapes: Mapping[str, tuple[int, ...]]) -> tuple[int, int]:
        return Integers.shape_of(shapes)

    @classmethod
    def unpack(cls, tensors: Mapping[str, Tensor], bias: Tensor | None, dtype: torch.dtype) -> Self:
        if absent := {*cls.layer_keys[:3]} - tensors.keys():
            raise UsageError(f"it has no {sorted(absent)[0]} beside its integers")
        found, bits = read_integers(tensors)
        out, width = found.codes.shape
        groups = found.scale.shape[1]
        size = None if groups == 1 else -(-width // groups)
        layer = cls(
            torch.empty(out, width, dtype=dtype, device="meta"),
            bias,
            cls.Config.model_validate({"bits": bits, "group_size": size}),
        )
        layer._store(found)
        return layer

    def search(self, weight: Tensor, cost: Tensor) -> None:
        size = self._size
        blocks = weight.float().view(self.out_features, -1, size)
        largest = search_scales(blocks, cost.view(-1, size), Levels(self._levels()))
        self.register_buffer("scale", (largest / self._middle).half())

    def grid(self) -> tuple[Tensor, Tensor]:
        size = self._size
        return self.scale.float().repeat_interleave(size, 1) * self._middle, self._levels()

    def take(self, codes: Tensor) -> None:
        zero = torch.full_like(self.scale, self._middle, dtype=torch.uint8)
        self._store(Integers(codes.to(torch.uint8), zero, self.scale, None))

    def hold(self, given: InGroups) -> bool:
        groups = self.in_features // self._size
        said = given.scale.half()
        fits = given.scale.shape == (self.out_features, groups) and torch.equal(said.float(), given.scale)
        if not fits or int(given.codes.max()) >= 2**self.config.bits or given.codes.shape[1] % groups:
            return False
        self._store(Integers(given.codes, given.zero, said, None))
        return True

    def stored(self, dtype: torch.dtype) -> dict[str, Tensor]:
        count = self.out_features * self.in_features
        codes = unpack(self.codes, self.config.bits, count).view(self.out_features, self.in_features)
        return gptq_tensors(Integers(codes, self.zero, self.scale, self.group), self.config.bits)

    @classmethod
    def fits(cls, config: Any, out_features: int, in_features: int) -> bool:
        whole = in_features % (config.group_size or in_features) == 0
        return (
            whole
            and config.bits in BITS
            and all(n * config.bits % WORD == 0 for n in (out_features, in_features))
        )

    @classmethod
    def said(cls, config: Any, dtype: torch.dtype, kept: list[str]) -> dict[str, Json]:
        size = -1 if config.group_size is None else config.group_size
        own: dict[str, Json] = {"bits": config.bits, "group_size": size, "desc_act": False, "sym": False}
        return {"quant_method": "gptq", "checkpoint_format": "gptq", **own}

    @property
    def _middle(self) -> int:
        return int(2 ** (self.config.bits - 1))

    def _levels(self) -> Tensor:
        return torch.arange(-self._middle, self._middle) / self._middle

    def _store(self, found: Integers) -> None:
        self.register_buffer("codes", pack(found.codes.flatten(), self.config.bits))
        self.register_buffer("zero", found.zero)
        self.register_buffer("scale", found.scale)
        self.register_buffer("group", found.group)
