"""Wanda: of every row the weights that count least, by their size and that of their inputs, are pruned."""

from __future__ import annotations

from typing import Protocol, cast

import torch
from torch import Tensor

from lrft.core.adapter import Adapter
from lrft.core.frozen import Quantizer
from lrft.core.stages import Init
from lrft.registry.axes import INITS
from lrft.registry.config import Field, MethodConfig


class Choosing(Protocol):
    """An adapter that keeps of every row of the weight the entries of largest size."""

    def choose(self, weight: Tensor, size: Tensor) -> None:
        """Keep of `weight` (out, in) the entries of largest `size` (out, in)."""


@INITS.register
class Wanda(Init):
    """Pruning by weights and activations: entries of every row are kept by |weight| times the norm of their input.

        S_ij = |W_ij| n_j,  n_j = the L2 norm of input j over `batches` micro-batches
        kept = of every row the entries of largest S; how many, the adapter says

    with W the weight before it is quantized. No weight is updated for those that go.

    Shapes: S (out, in), n (in). The model at step 0 is the pruned one.
    Trains: what the adapter trains. The base gives up nothing: the adapter holds which entries are kept.
    Source: Sun et al., "A Simple and Effective Pruning Approach for Large Language Models", ICLR 2024, arXiv
    2306.11695.
    Departures: settled here: the inputs are those of the model before any of its layers is pruned, in one pass over the
    training rows, where the authors measure layer by layer behind pruned ones, on 128 sequences of C4.
    """

    provides = {"kept_base", "moved_start"}
    requires = {"chosen_entries"}
    needs = ("input_norm",)

    config: Config

    class Config(MethodConfig):
        batches: int = Field(128, gt=0, description="training micro-batches the inputs are measured on")

    @torch.no_grad()
    def apply(self, adapter: Adapter, weight: Tensor, signal: dict[str, Tensor], quantize: Quantizer) -> None:
        size = weight.float().abs() * signal["input_norm"].to(weight.device)
        cast(Choosing, adapter).choose(weight, size)
