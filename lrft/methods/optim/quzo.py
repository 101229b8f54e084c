"""QuZO: zeroth-order descent with directions and updates of few bits, rounded so that they are right on average."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from lrft.core.params import ParamInfo
from lrft.methods.optim._directions import Draw, generator_of
from lrft.methods.optim._torch import State
from lrft.methods.optim.mezo import MeZO
from lrft.ops.rounding import GRIDS, stochastic_round
from lrft.registry.axes import OPTIMIZERS
from lrft.registry.config import Field, Iterator, Problem, RecipeView

ON_GRID = ("matrix", "matrices", "embedding", "head")  # roles of base weights


@OPTIMIZERS.register
class QuZO(MeZO):
    """Quantized zeroth-order descent: a random direction of few bits, and an update rounded onto the weights' grid.

        u ~ N(0, 1),  u1 = Q(u),  u2 = Q'(u)
        g = (L(p + eps u1) - L(p - eps u1)) / (2 eps)
        p <- p - R(lr (g u2 + wd p) / n)        for each of n directions

    with p all trained parameters, L the loss on the whole step's batch; eps = `eps`, n = `samples`, lr = `lr`,
    wd = `weight_decay`, which spares biases and norms. Q and Q' round each number of u up or down to one of
    2^`perturb_bits` evenly spaced ones from its tensor's smallest to its largest, with the probability that makes the
    expectation u, and independently of one another: so E[u2 u1^T] = I and g u2 is right on average, where one rounding
    used twice would add its variance. R rounds onto the grid that p is stored on, in the same way: with
    `weight_bits: b` the 2^b evenly spaced numbers from the smallest to the largest of the tensor as it is at the first
    step, which rounds p to the nearest of them and does not leave them later; without it bfloat16 or float16 for
    weights in these, and in float32 nothing is rounded. All n slopes are taken at one p. Draws come
    from `seed`.

    Shapes: u, u1, u2 as p; g one number.
    State: 0 bytes per number, a step count; with `weight_bits` the two ends of each tensor. During a step one copy of
    what trains with `restore: exact`, none with `restore: in_place` (`mezo`).
    Source: Zhou et al., "QuZO: Quantized Zeroth-Order Fine-Tuning for Large Language Models", EMNLP 2025, arXiv
    2502.12346: the estimator and the update, known here by a transcription of the formulas.
    Departures: settled here: uniform grids from end to end and 4 bits of the direction, as the released scripts have
    them, without what contradicts the formulas there: one seed for both roundings, and a random mask. The forward
    pass is that of the base's storage (`quantization`) and activations are not rounded. `weight_bits` keeps weights on
    the grid but in the dtype of the model, so it saves no memory; norms and biases stay off it, values that would leave
    its ends stay there.
    Advice: the scripts have `eps: 0.001`, and `lr: 1e-6` for all weights at 4 bits; `weight_bits` goes with
    `trainable: full`.
    """

    aliases = {
        "quantized_zeroth_order quantized_mezo": "optimizer: quzo\ntrain: {clip: null}",
    }

    class Config(MeZO.Config):
        eps: float = Field(1e-3, gt=0, description="how far the two points lie from the parameters")
        perturb_bits: int = Field(4, ge=1, le=16, description="bits of a number of the direction")
        weight_bits: int | None = Field(
            None, ge=2, le=8, description="bits of a base weight; by default as it is stored"
        )

        def clashes(self, recipe: RecipeView) -> Iterator[Problem]:
            """A grid for weights, where none of them trains."""
            yield from super().clashes(recipe)
            if self.weight_bits is not None and recipe["trainable.weights"] == "adapter":
                message = (
                    "rounds weights of the base model, and none trains; remove it, or write trainable: full"
                )
                yield Problem("optimizer.weight_bits", message)

    answer: Draw
    seed: int
    on_grid: set[str]
    weight_bits: int | None

    @classmethod
    def build(cls, params: list[ParamInfo], config: Any, draw: Draw | None = None) -> QuZO:
        """As MeZO's, with a second rounding of every direction for the update.

        Args:
            draw: u instead of normal numbers, the same for the same arguments.
        """
        optimizer = super().build(params, config, rounded(config.seed, config.perturb_bits, "first", draw))
        assert isinstance(optimizer, QuZO)
        optimizer.answer = rounded(config.seed, config.perturb_bits, "second", draw)
        optimizer.seed, optimizer.weight_bits = config.seed, config.weight_bits
        on_grid = [] if config.weight_bits is None else [info for info in params if _has_grid(info)]
        if config.weight_bits is not None and not on_grid:
            raise ValueError(
                "weight_bits rounds matrices of the base model, and none of them trains; leave it out"
            )
        for info in on_grid:
            if not info.param.is_meta and info.param.min() == info.param.max():
                raise ValueError(
                    f"{info.name} is one number everywhere and spans no grid; leave out weight_bits"
                )
        optimizer.on_grid = {info.name for info in on_grid}
        return optimizer

    @torch.no_grad()
    def step(self, closure: Callable[[], Tensor]) -> Tensor:  # type: ignore[override]
        """MeZO's step, at the first of which weights go onto their grid."""
        for param, name, _ in self._moving():
            if name in self.on_grid and param not in self.state:
                assert self.weight_bits is not None
                low, high = param.min().item(), param.max().item()
                self.state[param] = {"low": low, "unit": (high - low) / (2**self.weight_bits - 1)}
                param.copy_(self._placed(self._codes(param.float(), self.state[param]), self.state[param]))
        return super().step(closure)

    def _update(self, slopes: list[float]) -> None:
        for param, name, group in self._moving():
            decay = group["weight_decay"] * param.float() / len(slopes)
            for sample, slope in enumerate(slopes):
                change = self.answer(param, name, group["steps"], sample).mul_(slope).add_(decay)
                generator = generator_of(self.seed, group["steps"], sample, f"{name} update", param.device)
                self._move(param, change.mul_(-group["lr"]), self.state.get(param), generator)

    def _move(self, param: Tensor, change: Tensor, grid: State | None, generator: torch.Generator) -> None:
        """Add the change to p, rounded onto the grid of p."""
        if grid:
            codes = self._codes(param.float(), grid).add_(round_evenly(change / grid["unit"], generator))
            param.copy_(self._placed(codes, grid))
        elif param.dtype in GRIDS:
            param.copy_(stochastic_round(change.add_(param), generator, param.dtype))
        else:
            param.add_(change)

    def _codes(self, values: Tensor, grid: State) -> Tensor:
        return values.sub(grid["low"]).div_(grid["unit"]).round_()

    def _placed(self, codes: Tensor, grid: State) -> Tensor:
        assert self.weight_bits is not None
        return codes.clamp_(0, 2**self.weight_bits - 1).mul_(grid["unit"]).add_(grid["low"])


def rounded(seed: int, bits: int, which: str, draw: Draw | None = None) -> Draw:
    """Normal numbers u, float32, in `bits` bits: of one u every `which` is an independent rounding."""

    def draw_rounded(param: Tensor, name: str, step: int, sample: int) -> Tensor:
        if draw is None:
            generator = generator_of(seed, step, sample, name, param.device)
            u = torch.randn(param.shape, generator=generator, device=param.device)
        else:
            u = draw(param, name, step, sample).float()
        return quantized(u, bits, generator_of(seed, step, sample, f"{name} {which}", param.device))

    return draw_rounded


def quantized(u: Tensor, bits: int, generator: torch.Generator) -> Tensor:
    """Numbers u on 2^bits evenly spaced numbers from its smallest to its largest, each right on average."""
    low = u.amin()
    unit = ((u.amax() - low) / (2**bits - 1)).clamp_(min=torch.finfo(u.dtype).tiny)
    codes = round_evenly((u - low) / unit, generator).clamp_(max=2**bits - 1)
    return codes.mul_(unit).add_(low)


def round_evenly(values: Tensor, generator: torch.Generator) -> Tensor:
    """To integers, up or down with the probability that makes the expectation exact."""
    noise = torch.rand(values.shape, generator=generator, device=values.device)
    return noise.add_(values).floor_()


def _has_grid(info: ParamInfo) -> bool:
    return not info.site and info.role in ON_GRID and info.param.ndim >= 2
