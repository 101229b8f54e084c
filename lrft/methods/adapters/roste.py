"""RoSTE: every weight trains behind a rounding of weights and inputs, each layer rotated where that rounds better."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Annotated, Any, Literal

import torch
from torch import Tensor

from lrft.core.frozen import FrozenLinear
from lrft.core.kept import Keeping
from lrft.core.params import Site
from lrft.methods.adapters._rounded import RoundedChange
from lrft.ops.hadamard import rotation_of
from lrft.ops.rotated_matmul import Rounded, rotated_linear
from lrft.ops.straight_through import straight_through
from lrft.ops.uniform import rounded_rows
from lrft.registry.axes import ADAPTERS
from lrft.registry.config import ADDED, Field, Iterator, Problem, RecipeView


@ADAPTERS.register
class RoSTE(Keeping, RoundedChange):
    """Rotated straight-through estimation: supervised fine-tuning of all weights that are rounded to few bits.

        y = Qx(x R) Qw((W + D) R)^T + b
        R = I, or diag(s) H with s random signs and H a Walsh-Hadamard matrix over the square root of its order

    Qw rounds every row of weights to `bits`, Qx every token to `activation_bits`, onto q (n - z), n = 0 ... 2^bits - 1,
    with q = c (max - min) / (2^bits - 1), z = round(-c min / q), c = `clip`. The gradients pass both roundings as if
    there were none: dD = (dy^T Qx(x R)) R^T. `init: roste` gives each layer the R of less error before training, and it
    stays. Without `activation_bits` weights alone are rounded; then

        W' = Qw((W + D) R) R^T

    `cache_bits` rounds what attention keeps of a token, each head of keys and of values by itself:

        k' = Q(k R) R^T,  v' = Q(v R) R^T,  R = I or diag(s) H of the head's width

    with k behind its rotation to a position, Q as Qx; the gradients pass. k' in the place of k gives the product of the
    paper's rotated queries and keys, and v' that of its rotated values and output layer.

    Shapes: D (out, in) = 0; R (in, in), never formed. At step 0 it is the pretrained model rounded.
    Trains: out in numbers per site, all of a layer's: this saves no memory while it trains, and the adapter's files are
    as large as the model. D, its gradient and the optimizer's state are float32. The pass keeps x alone; what is
    rotated and rounded is made again in the backward pass. A step takes three products as large as W's, where a frozen
    W takes two, and turns and rounds x, W and what comes back.
    Source: Wei et al., "RoSTE: An Efficient Quantization-Aware Supervised Fine-Tuning Approach for Large Language
    Models", 2025, arXiv 2502.09003: layer, choice, estimator and quantizer; the authors' code (Hong-Lab-UMN-ECE/RoSTE)
    for which numbers of the cache share a step, and where they are rounded.
    Departures: R is of each layer by itself, on its inputs and its weight, where the paper shares one between blocks
    (on which it rotates outputs and embeddings too) and searches the rest. What is rounded of the cache is stored in
    the model's precision: the numbers are those of `cache_bits`, the memory is not. Settled here: the signs come before
    H, since behind it they would only flip what is rounded; a width that is no power of two is rotated in blocks of the
    largest power that divides it. D is beside a frozen W, so weight decay pulls to the pretrained weights.
    Advice: the paper's is 4 bits for all three, c of 1, 0.95 or 0.9, AdamW at 3e-6 to 3e-5 (Pythia), 1e-6 to 5e-6
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
    kept_rotated: Tensor

    class Config(RoundedChange.Config):
        clip: float = Field(1.0, gt=0, le=1, description="share of the range that the numbers span")
        cache_bits: Annotated[Literal[2, 3, 4, 5, 6, 7, 8] | None, ADDED] = Field(
            None, description="bits of keys and values as attention keeps them; null leaves them as they are"
        )

        def clashes(self, recipe: RecipeView) -> Iterator[Problem]:
            """A start that rotates nothing."""
            init = recipe.declared("init")
            if init is not None and init.name != "roste":
                yield Problem("init.method", "does not choose which layers are rotated; write roste")
            if self.cache_bits is not None and recipe["model.compile"]:
                yield Problem(
                    "model.compile", "adapter.cache_bits rounds between layers, uncompiled; write false"
                )

    def __init__(self, config: Config, site: Site) -> None:
        super().__init__(config, site)
        self.rotation = rotation_of(site.in_features)
        self.turn(False)
        self.turn_kept(False)

    def turn(self, rotated: bool) -> None:
        """Rotate from now on, or not; how many entries `rotated` has says it, so that nothing is read from a device."""
        self.register_buffer("rotated", torch.ones(int(rotated), dtype=torch.uint8, device=self.D.device))

    def turn_kept(self, rotated: bool) -> None:
        """The same of what is kept of keys or values."""
        if self.keeps:
            flag = torch.ones(int(rotated), dtype=torch.uint8, device=self.D.device)
            self.register_buffer("kept_rotated", flag)

    def make_room(self, prefix: str, saved: Mapping[str, Tensor]) -> None:
        """Rotated as it was."""
        for name, turn in (("rotated", self.turn), ("kept_rotated", self.turn_kept)):
            if (found := saved.get(f"{prefix}{name}")) is not None:
                turn(len(found) > 0)

    def _load_from_state_dict(self, state_dict: Mapping[str, Any], prefix: str, *rest: Any) -> None:
        self.make_room(prefix, state_dict)
        super()._load_from_state_dict(state_dict, prefix, *rest)

    @property
    def keeps(self) -> bool:
        return self.config.cache_bits is not None

    def kept(self, part: Tensor) -> Tensor:
        rotation = rotation_of(part.shape[-1]) if len(self.kept_rotated) else None
        rows = partial(rounded_rows, bits=self.config.cache_bits, clip=self.config.clip)
        rounded = Rounded(rows, rows, rotation)
        return straight_through(part.float(), lambda k: rounded.back(rounded.weight(k))).to(part.dtype)

    @classmethod
    def why_not_merged(cls, config: Any, site: Site) -> str:
        if config.cache_bits is None or config.activation_bits is not None:
            return super().why_not_merged(config, site)
        return (
            f"{cls.name} rounds the keys and values of the cache, which no weight says; keep the adapter separate, or "
            "train with adapter.cache_bits: null"
        )

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
