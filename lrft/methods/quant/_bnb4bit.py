"""Blockwise 4-bit storage on bitsandbytes' kernels, shared by NF4 and FP4."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, Self

import torch
from torch import Tensor

from lrft.core.levels import Levelled
from lrft.methods.quant._bnb import Held, Linear4bit, QuantState, bitsandbytes_functional
from lrft.methods.quant._bnb_tables import levels_of, scale_levels, undo_repacking
from lrft.methods.quant._encoded import Encoded
from lrft.ops.decoded_levels import decoded_levels
from lrft.ops.levels import Levels, search_scales
from lrft.ops.nearest_levels import nearest_levels
from lrft.registry.config import Field, Literal, MethodConfig
from lrft.registry.errors import UsageError
from lrft.registry.json import Json

OUTPUTS = 32  # bitsandbytes' kernel for CPUs takes whole groups of so many (0.50.2)
SCALES_PER_BLOCK = 256  # double quantization: blocks of scales that share a second scale


class BitsAndBytes4bit(Encoded, Levelled):
    """Two codes a byte and one scale a block, the scales themselves in 8 bits with double quantization.

    Buffers, for n = out * in weights in k = ceil(n / block_size) blocks:
        codes: (ceil(n / 2), 1) uint8, the first of two weights in the high nibble.
        absmax: (k,) float32, or its (k,) uint8 codes with double quantization, which adds
        offset: () float32, the mean scale, and
        absmax2: (ceil(k / 256),) float32, the scales of the scales.

    bitsandbytes' own `Linear4bit` is never used. On CPUs with AVX512-BF16 it rewrites its weight for a fused
    kernel in the first forward pass in eval mode. Whatever decodes that weight later reads a wrong matrix,
    the backward pass of a training that follows included.
    """

    provides: ClassVar[set[str]] = {"rounded_base", "levels"}
    quant_type: ClassVar[str]
    codes: Tensor
    absmax: Tensor
    offset: Tensor | None
    absmax2: Tensor | None
    scales = ("absmax", "offset", "absmax2")

    class Config(MethodConfig):
        double_quant: bool = Field(
            True, description="scales in 8 bits too: 4.127 bits a weight instead of 4.5"
        )
        block_size: Literal[32, 64, 128, 256, 512, 1024] = Field(64, description="weights that share a scale")

    config: Config

    @classmethod
    def bits(cls, config: Config) -> float:
        scale = 8 + 32 / SCALES_PER_BLOCK if config.double_quant else 32
        return 4 + scale / config.block_size

    def encode(self, weight: Tensor) -> None:
        if weight.is_meta:  # `adopt` brings the codes
            return
        levels = bitsandbytes_functional().get_4bit_type(self.quant_type, device=weight.device)
        if (found := nearest_levels(weight.contiguous(), levels, self.config.block_size)) is not None:
            return self._store_scaled(*found)
        codes, state = bitsandbytes_functional().quantize_4bit(
            weight.contiguous(),
            blocksize=self.config.block_size,
            compress_statistics=self.config.double_quant,
            quant_type=self.quant_type,
        )
        self._store(codes, state.absmax, state.offset, state.state2.absmax if state.nested else None)

    def weight(self) -> Tensor:
        functional = bitsandbytes_functional()
        count = self.out_features * self.in_features
        state = functional.QuantState(
            absmax=self._scales(),
            shape=self._readable_shape(),
            blocksize=self.config.block_size,
            quant_type=self.quant_type,
            dtype=self.compute_dtype,
        )
        dense = functional.dequantize_4bit(self.codes, state).reshape(-1)
        weight: Tensor = dense[:count].view(self.out_features, self.in_features)
        return weight

    def weight_as(self, work: torch.dtype) -> tuple[Tensor, bool]:
        if work == torch.float32 and self.compute_dtype == torch.bfloat16 and not self.codes.is_meta:
            second, offset = self.absmax2, self.offset
            scales = (
                self.absmax
                if second is None or offset is None
                else (self.absmax, scale_levels(), second, offset)
            )
            shape = self.out_features, self.in_features
            size = self.config.block_size
            levels = levels_of(self.quant_type)
            found = decoded_levels(self.codes, levels, scales, shape, size, SCALES_PER_BLOCK)
            if found is not None:
                return found, True
        return super().weight_as(work)

    @classmethod
    def adopt(cls, layer: Linear4bit, dtype: torch.dtype | None = None) -> Self:
        """Take over an existing bitsandbytes `Linear4bit`, codes bit for bit, without changing that layer.

        Args:
            layer: a quantized layer, as loaded from a checkpoint saved in 4 bits. Its codes are shared.
            dtype: what to compute in; by default the dtype the weight was quantized from.

        If an eval forward pass on CPU has already repacked the layer, the repacking is undone here. It had
        also rounded the scales to bfloat16, which cannot be undone; a warning says so where that loses
        something. The rounded scales are kept as they are, and not quantized again.

        Raises:
            UsageError: the layer is not quantized yet, or is of another 4-bit type.
        """
        state: QuantState | None = getattr(layer.weight, "quant_state", None) or getattr(
            layer, "quant_state", None
        )
        if state is None:
            raise UsageError(
                "quantization: the Linear4bit layer holds no codes yet; move it to its device first"
            )
        if state.quant_type != cls.quant_type:
            raise UsageError(f"quantization: the layer is stored as {state.quant_type}, not {cls.quant_type}")
        repacked = getattr(state, "packing_format_for_cpu", False)
        dtype = dtype or (state.original_dtype if repacked else state.dtype)
        config = cls.Config(double_quant=state.nested, block_size=state.blocksize)
        adopted = cls(torch.empty(state.shape, dtype=dtype, device="meta"), layer.bias, config)
        if repacked:
            adopted._store(*undo_repacking(layer.weight.data, state))
        else:
            codes = layer.weight.data.view(torch.uint8).reshape(-1, 1)
            adopted._store(codes, state.absmax, state.offset, state.state2.absmax if state.nested else None)
        return adopted

    @classmethod
    def unpack(cls, tensors: Mapping[str, Tensor], bias: Tensor | None, dtype: torch.dtype) -> Self:
        codes = tensors["weight"]
        beside = {key.removeprefix("weight."): part for key, part in tensors.items() if key != "weight"}
        state = bitsandbytes_functional().QuantState.from_dict(beside, codes.device)
        table = bitsandbytes_functional().get_4bit_type(state.quant_type, device=codes.device)
        same_scales = not state.nested or state.state2.blocksize == SCALES_PER_BLOCK
        if not same_scales or not torch.allclose(state.code, table, atol=1e-6):
            raise UsageError(f"its 4-bit codes are not those of {cls.quant_type}")
        return cls.adopt(Held(codes, bias, state), dtype)

    def search(self, weight: Tensor, cost: Tensor) -> None:
        size = self.config.block_size
        blocks = weight.float().view(self.out_features, -1, size)
        absmax = search_scales(blocks, cost.view(-1, size), Levels(self._levels())).flatten()
        self._store_scaled(self.codes, absmax)

    def _store_scaled(self, codes: Tensor, absmax: Tensor) -> None:
        """Store codes with scales (k,) in float32, which are encoded too with double quantization."""
        if not self.config.double_quant:
            return self._store(codes, absmax, None, None)
        offset = absmax.mean()
        functional = bitsandbytes_functional()
        scales, second = functional.quantize_blockwise(absmax - offset, blocksize=SCALES_PER_BLOCK)
        return self._store(codes, scales, offset, second.absmax)

    def grid(self) -> tuple[Tensor, Tensor]:
        scales = self._scales().view(self.out_features, -1)
        return scales.repeat_interleave(self.config.block_size, 1), self._levels()

    def take(self, codes: Tensor) -> None:
        pairs = codes.to(torch.uint8).view(-1, 2)
        self.register_buffer("codes", (pairs[:, :1] << 4) | pairs[:, 1:])

    def stored(self, dtype: torch.dtype) -> dict[str, Tensor]:
        functional = bitsandbytes_functional()
        second = None
        if self.absmax2 is not None:
            table = functional.create_dynamic_map().to(self.absmax2.device)
            second = functional.QuantState(
                self.absmax2, code=table, blocksize=SCALES_PER_BLOCK, dtype=torch.float32
            )
        state = functional.QuantState(
            self.absmax,
            shape=(self.out_features, self.in_features),
            code=self._levels(),
            blocksize=self.config.block_size,
            quant_type=self.quant_type,
            dtype=dtype,
            offset=self.offset,
            state2=second,
        )
        beside = {f"weight.{key}": part for key, part in state.as_dict(packed=True).items()}
        return {"weight": self.codes, **beside}

    @classmethod
    def fits(cls, config: Config, out_features: int, in_features: int) -> bool:
        return in_features % config.block_size == 0 and out_features % OUTPUTS == 0

    @classmethod
    def said(cls, config: Config, dtype: torch.dtype, kept: list[str]) -> dict[str, Json]:
        return {
            "quant_method": "bitsandbytes",
            "load_in_4bit": True,
            "bnb_4bit_quant_type": cls.quant_type,
            "bnb_4bit_use_double_quant": config.double_quant,
            "bnb_4bit_compute_dtype": str(dtype).removeprefix("torch."),
            "bnb_4bit_quant_storage": "uint8",
            "llm_int8_skip_modules": [*kept],
        }

    def _levels(self) -> Tensor:
        table: Tensor = bitsandbytes_functional().get_4bit_type(self.quant_type, device=self.codes.device)
        return table.float()

    def _store(self, codes: Tensor, absmax: Tensor, offset: Tensor | None, absmax2: Tensor | None) -> None:
        self.register_buffer("codes", codes)
        self.register_buffer("absmax", absmax if self.config.double_quant else absmax.float())
        self.register_buffer("offset", offset)
        self.register_buffer("absmax2", absmax2)

    def _scales(self) -> Tensor:
        """The block scales (k,) in float32."""
        if self.offset is None:
            return self.absmax
        functional = bitsandbytes_functional()
        scales: Tensor = functional.dequantize_blockwise(
            self.absmax, absmax=self.absmax2, blocksize=SCALES_PER_BLOCK
        )
        return scales + self.offset

    def _readable_shape(self) -> tuple[int, ...]:
        """A shape bitsandbytes decodes correctly.

        Blocks run on over the ends of rows where a row is no whole number of blocks, but its AVX512 kernel
        starts a new one with each row (0.50.2: an error of 28 % on a 64 x 96 matrix). As one long row every
        shape is right, said in two dimensions, which compiled code is promised and gets. An odd count takes the
        padding nibble along: odd rows go to code compiled per shape.
        """
        if self.in_features % self.config.block_size == 0:
            return self.out_features, self.in_features
        count = self.out_features * self.in_features
        return 1, count + count % 2
