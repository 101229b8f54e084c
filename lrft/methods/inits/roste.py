"""RoSTE's choice: a layer is rotated where its weight and its inputs are rounded better then."""

from __future__ import annotations

from typing import Protocol, cast

import torch
from torch import Tensor

from lrft.core.adapter import Adapter
from lrft.core.frozen import Quantizer
from lrft.core.stages import Init
from lrft.ops.rotated_matmul import Rounded
from lrft.registry.axes import INITS
from lrft.registry.config import Any, Field, MethodConfig


class Turning(Protocol):
    """An adapter that may rotate what it rounds."""

    def turn(self, rotated: bool) -> None:
        """Rotate from now on, or not."""

    def rounded(self) -> Rounded:
        """How this site rounds."""

    def turn_kept(self, rotated: bool) -> None:
        """Rotate what is kept of keys or values from now on, or not."""


@INITS.register
class RoSTEChoice(Init):
    """Adaptive rotation: every layer gets of two rotations the one that rounds with less error.

        E(R) = |Qw(W R) - W R|^2 + mean over tokens of |Qx(x R) - x R|^2
        R    = diag(s) H where E(diag(s) H) < E(I), else I

    and likewise of what `cache_bits` rounds, keys and values apart: E(R) = mean over tokens of the sum over heads of
    |Q(k R) - k R|^2. Q and R are those of the adapter, the inputs x those of `batches` micro-batches of the training
    rows at the pretrained weights, W the weight before it is quantized. Without `activation_bits` the second term is
    left out.

    Shapes: W (out, in), x (in); E one number. The model at step 0 is the rounded one.
    Trains: what the adapter trains. The base gives up nothing.
    Source: Wei et al., "RoSTE", 2025, arXiv 2502.09003, and the authors' code: all errors with I and all with H, once,
    before training.
    Departures: as of `adapter: roste`; the paper has 128 samples, here they are `batches` micro-batches. The code takes
    means over all entries of weight and of inputs, where the sums here are those of the paper. It chooses one rotation
    for the values and the inputs of the output layer, here each has its own.
    """

    provides = {"kept_base", "moved_start"}
    requires = {"chosen_rotation"}
    needs = ("rotation_error", "kept_error")

    config: Config

    class Config(MethodConfig):
        batches: int = Field(128, gt=0, description="training micro-batches the inputs are measured on")

    def signal_options(self, name: str, config: Any) -> dict[str, object]:
        bits = config.activation_bits if name == "rotation_error" else config.cache_bits
        return {"bits": bits, "clip": config.clip}

    @torch.no_grad()
    def apply(self, adapter: Adapter, weight: Tensor, signal: dict[str, Tensor], quantize: Quantizer) -> None:
        part, V = cast(Turning, adapter), weight.float()
        errors = []
        for rotated, of_inputs in zip((False, True), signal["rotation_error"].tolist(), strict=True):
            part.turn(rotated)
            rounded = part.rounded()
            of_weight = (rounded.back(rounded.weight(V)) - V).square().sum()  # R keeps lengths
            errors.append(float(of_weight) + of_inputs)
        part.turn(errors[1] < errors[0])
        as_it_is, turned = signal.get("kept_error", torch.zeros(2)).tolist()
        part.turn_kept(turned < as_it_is)
