"""ZeroQAT: weights behind a rounding of weights and inputs that no gradient has to pass, trained by forward passes."""

from __future__ import annotations

import torch
from torch import Tensor

from lrft.core.frozen import FrozenLinear
from lrft.core.params import Site
from lrft.methods.adapters._groups import check_groups
from lrft.methods.adapters._rounded import RoundedChange
from lrft.ops.dense_matmul import dense_linear
from lrft.ops.straight_through import straight_through
from lrft.ops.uniform import rounded_rows
from lrft.registry.axes import ADAPTERS
from lrft.registry.config import Field, Iterator, Problem, RecipeView

SMALLEST = 1e-5  # of a largest magnitude that smoothing divides by


@ADAPTERS.register
class ZeroQAT(RoundedChange):
    """Zeroth-order quantization-aware training: smoothed, and rounded anew at both points of every step.

        y = Qx(x / v) Qw((W + D) v)^T + b
        v_j = a_j^t / w_j^(1 - t),  a_j = max |x_j|,  w_j = max over rows of |W_ij|
        g = (L(D + eps z) - L(D - eps z)) / (2 eps),  D <- D - lr g z                     `optimizer: mezo`

    with t = `smoothing`, v = 1 where it is null. Qw rounds every row of weights, or each `group_size` of a row, to
    `bits`, Qx every token to `activation_bits`, both onto q (n - z), n = 0 ... 2^bits - 1, with
    q = (max - min) / (2^bits - 1), z = round(-min / q). a is measured once, by `init: smoothquant`, and v stays; the
    grids follow D, so they are others at D + eps z and D - eps z. D itself is never rounded. Without `activation_bits`
    weights alone are rounded; then

        W' = Qw((W + D) v) / v

    Shapes: D (out, in) = 0; v, a, w (in). At step 0 it is the pretrained model smoothed and rounded.
    Trains: out in numbers per site in float32, in files as large as the model. With `optimizer: mezo` no gradient, no
    moments and no activation of a backward pass: a pass has one layer's rounded weight at a time.
    Source: ZeroQAT, "End-to-End On-Device Quantization-Aware Training for LLMs at Inference Cost", 2025, and its code
    (Skilteee/ZeroQAT).
    Departures: D is beside a frozen W and float32, where the code moves W in half precision, which loses updates far
    below it. Every layer is smoothed, by the one t, and its inputs are divided where they come in; the code leaves out
    the layers behind attention and in the middle of the feed-forward block, has a t for each input of LLaMA, shifts the
    inputs of OPT too, and rounds queries, keys and values. Its steps are at least 1e-4, and norms, biases and
    embeddings move too: `trainable` names them. Exponents t do not train. The lightweight variant, in which most
    weights are rounded once and rest, is `targets` or `layers` with `quantization: nf4`; memory as in the paper is not
    promised.
    Advice: the scripts have `eps: 1e-3`, `lr: 1e-7`, 8,000 steps at a constant rate, t = 0.75 for OPT. A step of the
    grid must not be far larger than eps, or both points round to one model. `optimizer: mezo` with `adapter: l4q`
    trains the steps of the grid and low-rank factors in the same way.
    """

    aliases = {
        "zo_qat zeroth_order_qat": "adapter: zeroqat\ninit: smoothquant\noptimizer: mezo\ntrain: {clip: null}",
    }
    provides = {"adapters", "mergeable", "moved_start", "smoothed"}
    requires = {"one_stage"}

    config: Config
    a: Tensor

    class Config(RoundedChange.Config):
        group_size: int | None = Field(
            None, gt=0, description="weights of a row that share a step; by default the whole row"
        )
        smoothing: float | None = Field(
            0.5, ge=0, le=1, description="how much of the inputs' range weights take over; null for none"
        )

        def clashes(self, recipe: RecipeView) -> Iterator[Problem]:
            """A gradient through roundings that have none, and ranges that nobody measured."""
            optimizer, init = recipe.declared("optimizer"), recipe.declared("init")
            if optimizer is not None and "backward" in optimizer.requires:
                message = f"{optimizer.name} asks for gradients, and zeroqat rounds in every pass; write mezo"
                yield Problem("optimizer.method", message)
            measured = init is not None and init.name == "smoothquant"
            if self.smoothing is not None and not measured:
                message = "does not measure the ranges that adapter.smoothing goes by; write smoothquant, or "
                yield Problem("init.method", f"{message}adapter.smoothing: null")
            if self.smoothing is None and measured:
                yield Problem(
                    "adapter.smoothing", "null smooths nothing, and init: smoothquant measures for it"
                )

    def __init__(self, config: Config, site: Site) -> None:
        super().__init__(config, site)
        if config.group_size is not None:
            check_groups(config.group_size, site)
        self.register_buffer("a", torch.ones(site.in_features))

    @torch.no_grad()
    def smooth(self, weight: Tensor) -> Tensor:
        """The factors v (in,) of the frozen weight W (out, in)."""
        if self.config.smoothing is None:
            return weight.new_ones(weight.shape[1])
        widest = weight.abs().amax(0).clamp_min(SMALLEST)
        t = self.config.smoothing
        return (self.a.clamp_min(SMALLEST) ** t / widest ** (1 - t)).clamp_min(SMALLEST)

    def merged(self, weight: Tensor) -> Tensor:
        W = weight.float()
        v = self.smooth(W)
        return (self._rounded((W + self.D) * v) / v).to(weight.dtype)

    def forward(self, x: Tensor, base: FrozenLinear) -> Tensor:
        W = base.weight().float()
        v = self.smooth(W)
        seen = straight_through(x.float() / v, lambda u: rounded_rows(u, self.config.activation_bits))
        return dense_linear(seen.to(x.dtype), self._rounded((W + self.D) * v), base.bias)

    def _rounded(self, weight: Tensor) -> Tensor:
        groups = weight.unflatten(1, (-1, self.config.group_size or weight.shape[1]))
        return straight_through(groups, lambda rows: rounded_rows(rows, self.config.bits)).view(weight.shape)
