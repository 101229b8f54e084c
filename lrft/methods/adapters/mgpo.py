"""LoRA-MGPO: LoRA trained a little ahead of where it is, along the optimizer's momentum."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from lrft.core.adapter import Additive, Branch
from lrft.core.callback import Callback, TimedMethod
from lrft.core.frozen import FrozenLinear
from lrft.core.params import Site
from lrft.core.run import Run
from lrft.methods.adapters.lora import LoRA
from lrft.ops.low_rank import branch_linear
from lrft.registry.axes import ADAPTERS
from lrft.registry.config import Field, Iterator, Problem, RecipeView

FIRST = ("exp_avg", "momentum_buffer", "state1")  # what optimizers call their first moment
MOST = 10.0  # that the perturbation is enlarged by where gradients are small
TINY = 1e-12


@ADAPTERS.register
class MGPO(LoRA):
    """Momentum-guided perturbation: gradients of LoRA are taken a step ahead, at a weight moved along the momentum.

        y   = x (W + E)^T + b + s (drop(x) A^T) B^T      in training; E = 0 otherwise
        V   = s (M_B A + B M_A)
        E   = -rho min(1 / g, 10) V / ||V||
        g  <- beta g + (1 - beta) ||s (G_B A + B G_A)||       after every step's gradients; at first their norm

    with r = `rank`, s = `alpha` / r as in `lora`, rho = `rho`, beta = `beta`; M the optimizer's first moments, G the
    gradients of the whole step before clipping, ||.|| the Frobenius norm. E is constant within a step and has no
    gradient. It is 0 before the first moments are there, and where ||V|| is 1e-12 or less; before there is a g,
    min(1 / g, 10) is 1. E has rank 2 r and is never formed: x E^T goes through its factors, and norms through their
    Gram matrices, so that a base of any storage is left as it is.

    Shapes: A (r, in), B (out, r) = 0 as in `lora`, so W' = W at step 0; V, E (out, in).
    Trains: r (in + out) numbers per site. The factors of E take as much twice over, in float32, and are not saved; g is
    one number a site, saved with the run.
    Source: Chang et al., "LoRA-MGPO: Mitigating Double Descent in Low-Rank Adaptation via Momentum-Guided Perturbation
    Optimization", EMNLP 2025 Findings, arXiv 2502.14538, by its authors' code, as read by others.
    Departures: their code perturbs every micro-batch and reads gradients that are summed in part, and moves the stored
    weight to and fro, which drifts in bfloat16; neither is followed. The first version of the paper, LoRA-GGPO, is
    another method, random noise on the rows of W: `ggpo`.
    Advice: their runs on LLaMA-2-7B have `beta1` 0.8 in AdamW beside these defaults, on T5-base `rho: 0.05`,
    `beta: 0.9` and `beta1` 0.9. One forward and backward pass a step, as for LoRA.
    """

    aliases = {
        "lora_mgpo momentum_guided_perturbation": "adapter: mgpo",
    }
    requires = {"backward", "entry_moments", "first_order"}
    peft = LoRA.peft  # outside of training it is one

    config: Config

    class Config(LoRA.Config):
        rank: int = Field(8, gt=0, le=65_536)
        alpha: float = Field(16.0, gt=0, le=1_000_000)
        rho: float = Field(
            0.01, ge=0, le=1_000, description="norm of the perturbation where gradients have norm 1"
        )
        beta: float = Field(0.8, ge=0, lt=1, description="of the mean of the gradient's norm")

        def clashes(self, recipe: RecipeView) -> Iterator[Problem]:
            """Gradients that are gone when their norm is taken, and an optimizer without a first moment."""
            if recipe["optimizer.per_layer"]:
                yield Problem(
                    "optimizer.per_layer", "frees gradients whose norm adapter mgpo needs; write false"
                )
            if recipe["optimizer.momentum"] == 0:
                yield Problem("optimizer.momentum", "leaves adapter mgpo nothing to look along; write 0.9")

    def __init__(self, config: Config, site: Site) -> None:
        super().__init__(config, site)
        self.register_buffer("ahead_A", torch.zeros(2 * config.rank, site.in_features), persistent=False)
        self.register_buffer("ahead_B", torch.zeros(site.out_features, 2 * config.rank), persistent=False)

    @classmethod
    def timed(cls, config: MGPO.Config) -> Callback:
        return Perturbations(config)

    def reset(self) -> None:
        super().reset()
        if "ahead_A" in self._buffers:  # not yet where the constructor draws
            self.get_buffer("ahead_B").zero_()

    @torch.no_grad()
    def look_ahead(self, moments: tuple[Tensor, Tensor] | None, g: Tensor | None) -> None:
        """Set the factors of E from the first moments of A and B, or to 0."""
        down, up = self.get_buffer("ahead_A"), self.get_buffer("ahead_B")
        if moments is None:
            up.zero_()
            return
        down.copy_(torch.cat([self.A, moments[0]]))
        up.copy_(torch.cat([moments[1], self.B], dim=1))
        size = self.scaling * product_norm(down, up)
        enlarged = 1.0 if g is None else (1 / (g + TINY)).clamp(max=MOST)
        length = torch.where(
            size > TINY, self.config.rho * enlarged * self.scaling / size.clamp_min(TINY), 0.0
        )
        up.mul_(-length)

    @torch.no_grad()
    def gradient_norm(self) -> Tensor | None:
        """||s (G_B A + B G_A)||, 0-d float32; None where there are no gradients."""
        if self.A.grad is None or self.B.grad is None:
            return None
        down, up = torch.cat([self.A, self.A.grad]), torch.cat([self.B.grad, self.B], dim=1)
        return self.scaling * product_norm(down, up)

    def forward(self, x: Tensor, base: FrozenLinear) -> Tensor:
        return self._perturbed(super().forward(x, base), x)

    def forward_since(self, start: Additive, x: Tensor, base: FrozenLinear) -> Tensor:
        return self._perturbed(super().forward_since(start, x, base), x)

    def _perturbed(self, y: Tensor, x: Tensor) -> Tensor:
        if not self.training:
            return y
        ahead = Branch(self.get_buffer("ahead_A"), self.get_buffer("ahead_B"))
        return y + branch_linear(x, None, ahead, dtype=self.compute_dtype)


def product_norm(A: Tensor, B: Tensor) -> Tensor:
    """||B A|| for A (k, in) and B (out, k), 0-d float32, without the product."""
    A, B = A.double(), B.double()
    square: Tensor = ((B.mT @ B) * (A @ A.mT)).sum()
    return square.clamp_min(0).sqrt().float()


class Perturbations(TimedMethod):
    """Sets E before every step, and follows the norm of the gradients."""

    def __init__(self, config: MGPO.Config) -> None:
        super().__init__(config)
        self.beta = config.beta
        self.norms: dict[str, Tensor] = {}

    def before_step(self, run: Run) -> None:
        for name, site in run.adapted():
            part = site.adapter
            assert isinstance(part, MGPO)
            part.look_ahead(first_moments(run, part), self.norms.get(name))

    def after_backward(self, run: Run) -> None:
        for name, site in run.adapted():
            assert isinstance(site.adapter, MGPO)
            norm, before = site.adapter.gradient_norm(), self.norms.get(name)
            overflowed = run.scaler is not None and norm is not None and not bool(norm.isfinite())
            if norm is not None and not overflowed:  # of float16, whose update is then left out
                self.norms[name] = norm if before is None else self.beta * before + (1 - self.beta) * norm

    def state_dict(self) -> Mapping[str, object]:
        return {"norms": dict(self.norms)}

    def kept_later(self, run: Run) -> Mapping[str, object]:
        return {"norms": {name: torch.empty((), device="meta") for name, _ in run.adapted()}}

    def load_state_dict(self, state: Any) -> None:
        self.norms = dict(state["norms"])


def first_moments(run: Run, part: MGPO) -> tuple[Tensor, Tensor] | None:
    """Those of A and of B; None where the optimizer has none, or none yet."""
    found = []
    for factor in (part.A, part.B):
        state = run.optimizer.state.get(factor, {})
        held = next((state[name] for name in FIRST if torch.is_tensor(state.get(name))), None)
        if held is not None and held.shape == factor.shape and held.is_floating_point():
            found.append(held)
    return (found[0], found[1]) if len(found) == 2 else None
