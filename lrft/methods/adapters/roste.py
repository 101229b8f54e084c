"""RoSTE: every weight trains behind a rounding of weights and inputs, each layer rotated where that rounds better."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor

from lrft.core.frozen import FrozenLinear
from lrft.core.params import Site
from lrft.methods.adapters._rounded import RoundedChange
from lrft.ops.hadamard import rotation_of
from lrft.ops.rotated_matmul import Rounded, rotated_linear
from lrft.ops.straight_through import straight_through
from lrft.ops.uniform import rounded_rows
from lrft.registry.axes import ADAPTERS
from lrft.registry.config import Field, Iterator, Problem, RecipeView


@ADAPTERS.register
class RoSTE(RoundedChange):
    """Rotated straight-through estimation: supervised fine-tuning of all weights that are rounded to few bits.

        y = Qx(x R) Qw((W + D) R)^T + b
        R = I, or diag(s) H with s random signs and H a Walsh-Hadamard matrix over the square root of its order

    Qw rounds every row of weights to `bits`, Qx every token to `activation_bits`, onto q (n - z), n = 0 ... 2^bits - 1,
    with q = c (max - min) / (2^bits - 1), z = round(-c min / q), c = `clip`, 0 among the numbers of max and min. The
    gradients pass both roundings as if there were none: dD = (dy^T Qx(x R)) R^T. `init: roste` gives each layer the R
    of less error before training, and it stays. Without `activation_bits` weights alone are rounded; then

        W' = Qw((W + D) R) R^T

    Shapes: D (out, in) = 0; R (in, in), never formed. At step 0 it is the pretrained model rounded.
    Trains: out in numbers per site, all of a layer's: this saves no memory while it trains, and the adapter's files are
    as large as the model. D, its gradient and the optimizer's state are float32. The pass keeps x alone; what is
    rotated and rounded is made again in the backward pass. A step takes three products as large as W's, where a frozen
    W takes two, and turns and rounds x, W and what comes back.
    Source: Wei et al., "RoSTE: An Efficient Quantization-Aware Supervised Fine-Tuning Approach for Large Language
    Models", 2025, arXiv 2502.09003: layer, choice, estimator and quantizer; of the code the description alone.
    Departures: R is of each layer by itself, on its inputs and its weight, where the paper shares one between blocks
    (on which it rotates outputs and embeddings too) and searches the rest; no rounding of keys and values in the cache,
    as only linear layers are changed here. Settled here: the signs come before H, since behind it they would only flip
    what is rounded; a width that is no power of two is rotated in blocks of the largest power that divides it. D is
    beside a frozen W, so weight decay pulls to the pretrained weights.
    Advice: the paper's is 4 bits for both, c of 1, 0.95 or 0.9, AdamW at 3e-6 to 3e-5 (Pythia), 1e-6 to 5e-6
    (Llama 3.1 8B). Rotating every layer can break a model: the choice is the method.
    """

    aliases = {
        "rotated_straight_through": "adapter: roste\ninit: roste",
        "qat quantization_aware_training": "adapter: {method: roste, activation_bits: null}\ninit: roste",
    }
    provides = {"adapters", "mergeable", "moved_start", "chosen_rotation"}
    requires = {"one_stage"}

    config: Config
    rotated: Tensor

    class Config(RoundedChange.Config):
        clip: float = Field(1.0, gt=0, le=1, description="share of the range that the numbers span")

        def clashes(self, recipe: RecipeView) -> Iterator[Problem]:
            """A start that rotates nothing."""
            init = recipe.declared("init")
            if init is not None and init.name != "roste":
                yield Problem("init.method", "does not choose which layers are rotated; write roste")

    def __init__(self, config: Config, site: Site) -> None:
        super().__init__(config, site)
        self.rotation = rotation_of(site.in_features)
        self.turn(False)

    def turn(self, rotated: bool) -> None:
        """Rotate from now on, or not; how many entries `rotated` has says it, so that nothing is read from a device."""
        self.register_buffer("rotated", torch.ones(int(rotated), dtype=torch.uint8, device=self.D.device))

    def make_room(self, prefix: str, saved: Mapping[str, Tensor]) -> None:
        """Rotated as it was."""
        if (found := saved.get(f"{prefix}rotated")) is not None:
            self.turn(len(found) > 0)

    def _load_from_state_dict(self, state_dict: Mapping[str, Any], prefix: str, *rest: Any) -> None:
        self.make_room(prefix, state_dict)
        super()._load_from_state_dict(state_dict, prefix, *rest)

    def rounded(self) -> Rounded:
        """How this site rounds."""
        config = self.config
        inputs, weights = (
            partial(rounded_rows, bits=bits, clip=config.clip)
            for bits in (config.activation_bits, config.bits)
        )
        return Rounded(inputs, weights, self.rotation if len(self.rotated) else None)

    def merged(self, weight: Tensor) -> Tensor:
        rounded = self.rounded()
        exact = weight.float() + self.D
        return straight_through(exact, lambda V: rounded.back(rounded.weight(V))).to(weight.dtype)

    def forward(self, x: Tensor, base: FrozenLinear) -> Tensor:
        return rotated_linear(x, base, self.D, self.rounded())
