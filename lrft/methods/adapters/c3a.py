"""C3A: the change is a grid of circulant blocks."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from lrft.core.adapter import Additive, PeftForm
from lrft.core.frozen import FrozenLinear
from lrft.core.params import Site
from lrft.methods.adapters._divisors import check_divides
from lrft.ops.circulant import circulant, circulant_linear
from lrft.registry.axes import ADAPTERS
from lrft.registry.config import AdapterConfig, Field, Literal
from lrft.registry.json import Json


def c3a_form_keys(config: C3A.Config, with_start: bool) -> dict[str, Json]:
    """PEFT's keys of the method."""
    return {"peft_type": "C3A", "block_size": config.block_size}


@ADAPTERS.register
class C3A(Additive):
    """Circular convolution adaptation: every block of the change holds one trained row, shifted from row to row.

        W'_ij = W_ij + C(w_ij) / in,  C(w)[p, q] = w[(q - p) mod b]      block in row i, column j of the grid
        y     = x W'^T + bias

    with b = `block_size`, which divides in and out. A product with C(w) is a circular correlation, which training
    computes by Fourier transforms of the blocks of x: in out / b products a token instead of in out, and no block is
    formed. Transforms are in float32 whatever the activations are.

    Shapes: w (out / b, in / b, b), by default uniform within +- sqrt(6 / (in + out)) (`start: xavier`), so W' is not W
    at step 0 but close, for the factor 1 / in; with `start: zeros` it is. A restart starts from 0.
    Trains: in out / b numbers per site; the change can have full rank. x is kept for the backward pass, in its own
    precision, and nothing of the transforms. A step takes five transforms of all tokens in float32, which memory
    bounds: on a CPU they take longer than LoRA's products.
    Source: Chen et al., "Parameter-Efficient Fine-Tuning via Circular Convolution", 2024, arXiv 2407.19342; formula,
    factor and starts are those of PEFT's layer, which is the authors', checked on the same numbers; the paper was not
    read.
    Departures: none.
    Advice: for the factor 1 / in, learning rates are some thousand times those of LoRA (PEFT's own run has 0.3, and
    1e-4 for LoRA).
    """

    aliases = {"circular_convolution": "adapter: c3a"}
    provides = {"adapters", "mergeable", "linear_delta", "moved_start"}
    roles = {"w": "core"}
    peft = PeftForm(c3a_form_keys, names={"w": "c3a_kernel"}, transposed=False)

    config: Config

    class Config(AdapterConfig):
        block_size: int = Field(64, gt=0, description="side of the blocks; divides inputs and outputs")
        start: Literal["xavier", "kaiming", "gaussian", "zeros"] = Field(
            "xavier",
            description="xavier and kaiming are uniform; gaussian is N(0, 1); zeros changes nothing at step 0",
        )

    def __init__(self, config: Config, site: Site) -> None:
        super().__init__(config, site)
        b, out, width = config.block_size, site.out_features, site.in_features
        check_divides("block_size", b, site)
        self.scaling = 1 / width
        self.w = nn.Parameter(torch.zeros(out // b, width // b, b))
        if config.start == "gaussian":
            nn.init.normal_(self.w)
        elif config.start != "zeros":
            bound = math.sqrt(6 / (width + out)) if config.start == "xavier" else width**-0.5
            nn.init.uniform_(self.w, -bound, bound)

    def reset(self) -> None:
        nn.init.zeros_(self.w)

    def change(self) -> Tensor:
        return self.scaling * circulant(self.w)

    def forward(self, x: Tensor, base: FrozenLinear) -> Tensor:
        return base(x) + self.update(x)

    def update(self, x: Tensor) -> Tensor:
        return circulant_linear(x, self.scaling * self.w)

    @staticmethod
    def count(config: Config, site: Site) -> int:
        return int(site.in_features * site.out_features // config.block_size)
