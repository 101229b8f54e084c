"""LoRA-GGPO: LoRA trained on a weight with random noise, the more of it the larger a row and its gradient are."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from lrft.core.adapted import Adapted
from lrft.core.adapter import Additive
from lrft.core.callback import Callback, TimedMethod
from lrft.core.frozen import FrozenLinear
from lrft.core.params import Site
from lrft.core.run import Run
from lrft.methods.adapters.lora import LoRA
from lrft.ops.noise_matmul import noise_linear
from lrft.registry.axes import ADAPTERS
from lrft.registry.config import Field, Iterator, Problem, RecipeView


@ADAPTERS.register
class GGPO(LoRA):
    """Gradient-guided perturbation: gradients of LoRA are taken at a weight with noise, for flatter minima.

        y    = x (W' + E)^T + b,  W' = W + s B A                  in training; E = 0 otherwise
        E_ij ~ N(0, (sigma^2 / in) (||W'_i||^2 + beta ||g_i||^2))
        g    = s (G_B A + B G_A)                                of the step before, unclipped

    with r = `rank`, s = `alpha` / r as in `lora`, sigma = `sigma`, beta = `beta`; W'_i, g_i the rows, G the gradients
    of the whole step. E is drawn once a step, from the run's seed, and is constant in the backward pass; the first
    step, which no gradient went before, has none. E is drawn again where it is used and never kept, so that a base of
    any storage is left as it is.

    Shapes: A (r, in), B (out, r) = 0 as in `lora`, so W' = W at step 0; g, E (out, in), g never formed.
    Trains: r (in + out) numbers per site. Beside them one number a row, saved with the run. While a site is passed, in
    either direction, one (out, in) matrix.
    Source: Chang et al., "LoRA-GGPO: Mitigating Double Descent in LoRA Fine-Tuning via Gradient-Guided Perturbation
    Optimization", 2025, arXiv 2502.14538v1, whose later versions have another method (`mgpo`); by two public codes that
    take its equations for the variance up and agree on it.
    Departures: settled here: rows are those of the whole weight, as one of the two has it (the other perturbs A and B
    each by itself, and leaves the noise in them); g is what the same authors measure in `mgpo`. A third code, of
    diffusion trainers, has the deviation (sigma ||W_i|| + beta ||g_i||^2) / sqrt(out), which is not followed. Numbers
    of the paper cannot be compared.
    Advice: sigma and beta are those that such codes use. One forward and backward pass a step, as for LoRA, and twice
    the drawing of as many numbers as the weight has.
    """

    aliases = {
        "lora_ggpo gradient_guided_perturbation": "adapter: ggpo",
        "ggpo_sigma": "adapter: {method: ggpo, sigma: 0.03}",
        "ggpo_beta": "adapter: {method: ggpo, beta: 0.01}",
    }
    requires = {"backward", "first_order"}
    peft = LoRA.peft  # outside of training it is one

    config: Config

    class Config(LoRA.Config):
        rank: int = Field(8, gt=0, le=65_536)
        alpha: float = Field(16.0, gt=0, le=1_000_000)
        sigma: float = Field(0.03, ge=0, le=1_000, description="size of the noise beside that of a row")
        beta: float = Field(
            0.01, ge=0, le=1_000_000, description="weight of the squared gradient beside the squared row"
        )

        def clashes(self, recipe: RecipeView) -> Iterator[Problem]:
            """Gradients that are gone when their rows are measured."""
            if recipe["optimizer.per_layer"]:
                yield Problem(
                    "optimizer.per_layer", "frees gradients whose rows adapter ggpo measures; write false"
                )

    def __init__(self, config: Config, site: Site) -> None:
        super().__init__(config, site)
        self.register_buffer("deviations", torch.zeros(site.out_features), persistent=False)
        self.seed, self.noisy = 0, False

    @classmethod
    def timed(cls, config: GGPO.Config) -> Callback:
        return Noise(config)

    def reset(self) -> None:
        super().reset()
        self.noisy = False

    @torch.no_grad()
    def disturb(self, weight: Tensor, gradient: Tensor | None, seed: int) -> None:
        """Set the deviations of E from the rows of W' (out, in) and the squared ones of g (out,); None for no E."""
        self.seed, self.noisy = seed, gradient is not None and self.config.sigma > 0
        if gradient is not None:
            squares = weight.square().sum(dim=1) + self.config.beta * gradient
            deviations = squares.sqrt() * (self.config.sigma / math.sqrt(weight.shape[1]))
            self.get_buffer("deviations").copy_(deviations)

    @torch.no_grad()
    def gradient_rows(self) -> Tensor | None:
        """||g_i||^2, (out,) float32, without forming g; None where there are no gradients."""
        if self.A.grad is None or self.B.grad is None:
            return None
        down = torch.cat([self.A, self.A.grad]).double()
        up = torch.cat([self.B.grad, self.B], dim=1).double()
        squares: Tensor = ((up @ (down @ down.mT)) * up).sum(dim=1)
        return self.scaling**2 * squares.clamp_min(0).float()

    def forward(self, x: Tensor, base: FrozenLinear) -> Tensor:
        return self._disturbed(super().forward(x, base), x)

    def forward_since(self, start: Additive, x: Tensor, base: FrozenLinear) -> Tensor:
        return self._disturbed(super().forward_since(start, x, base), x)

    def _disturbed(self, y: Tensor, x: Tensor) -> Tensor:
        if not (self.training and self.noisy):
            return y
        return y + noise_linear(x, self.get_buffer("deviations"), self.seed)


class Noise(TimedMethod):
    """Sets E before every step, and follows the rows of the gradients."""

    def __init__(self, config: GGPO.Config) -> None:
        super().__init__(config)
        self.rows: dict[str, Tensor] = {}

    def start(self, run: Run) -> None:
        compiles = run.recipe is not None and run.recipe.model.compile
        if compiles and not hasattr(GGPO._disturbed, "_torchdynamo_disable"):  # each step has another seed
            GGPO._disturbed = torch.compiler.disable(GGPO._disturbed)  # type: ignore[method-assign]

    def before_step(self, run: Run) -> None:
        for index, (name, site) in enumerate(run.adapted()):
            assert isinstance(site.adapter, GGPO)
            seed = ((run.seed * 1_000_003 + run.step) * 3_000_017 + index) % 2**63
            site.adapter.disturb(site.merged_weight(), self.rows.get(name), seed)

    def after_backward(self, run: Run) -> None:
        for name, site in run.adapted():
            assert isinstance(site.adapter, GGPO)
            rows = site.adapter.gradient_rows()
            overflowed = run.scaler is not None and rows is not None and not bool(rows.isfinite().all())
            if rows is not None and not overflowed:  # of float16, whose update is then left out
                self.rows[name] = rows

    def state_dict(self) -> Mapping[str, object]:
        return {"rows": dict(self.rows)}

    def kept_later(self, run: Run) -> Mapping[str, object]:
        return {"rows": {name: _rows_of(site) for name, site in run.adapted()}}

    def load_state_dict(self, state: Any) -> None:
        self.rows = dict(state["rows"])


def _rows_of(site: Adapted) -> Tensor:
    assert isinstance(site.adapter, GGPO)
    return torch.empty(len(site.adapter.B), device="meta")
