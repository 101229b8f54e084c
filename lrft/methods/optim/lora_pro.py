"""LoRA-Pro: steps of A and B that move the product as full fine-tuning would."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.optim.optimizer import StateDict

from lrft.core.optimizer import Optimizer, loss_of
from lrft.core.params import ParamInfo
from lrft.methods.optim._adam import adam_defaults, load_in_own_dtype
from lrft.methods.optim._moments import adam_update, start_moments
from lrft.methods.optim._pairs import Gram, Pair, gram, pairs_of, sylvester, wide
from lrft.methods.optim._torch import Group
from lrft.registry.axes import OPTIMIZERS
from lrft.registry.config import Field, OptimizerConfig


@OPTIMIZERS.register
class LoRAPro(Optimizer):
    """Adjusted gradients of A and B whose joint step moves the product nearest to the full gradient.

        gA' = (1/s^2) (B^T B)^-1 gA + X A
        gB' = (1/s^2) [I - B (B^T B)^-1 B^T] gB (A A^T)^-1 - B X
        (B^T B) X + X (A A^T) = -(1/s^2) (B^T B)^-1 gA A^T
        A <- (1 - lr wd) A - lr gA',  B <- (1 - lr wd) B - lr gB'

    with gA = s B^T G and gB = s G A^T what backpropagation gives for the full gradient G = dL/dW, s the scale of s B A;
    for any X (r, r) the pair gA', gB' minimises ||s (B gA' + gB' A) - G||, and this X keeps them nearest gA, gB. With
    `variant: sgd` these are the steps. With `variant: adamw` Geq = s (B gA' + gB' A) at X = 0 goes through Adam's
    moments (b1 = `beta1`, b2 = `beta2`, `eps`) to the direction g~ = m^ / (sqrt(v^) + eps), and gA = s B^T g~, gB = s
    g~ A^T take the place of the gradients. Once per optimizer step, on the accumulated and clipped gradient. Inverses
    are pinv(. + `damping` I); lr = `lr`, wd = `weight_decay`. Other parameters (magnitudes, routers): AdamW, or SGD
    with `variant: sgd`. Weight decay is decoupled, on all of them.

    Shapes: G, g~, and the moments (out, in); A, gA' (r, in); B, gB' (out, r). At step 0 with B = 0: gA' = gA = 0 and
    gB' = (1/s^2) gB (A A^T)^-1.
    State: with `variant: adamw` 2 numbers per number of the adapted matrices, float32 moments of 8 bytes: as much as
    full fine-tuning, whatever the rank. `variant: sgd` holds none.
    Source: Wang et al., "LoRA-Pro", ICLR 2025, arXiv 2407.18242, and the authors' code.
    Departures: in their code s is the constant 2, the bias correction runs a step ahead, the second moment is bfloat16
    and no moment is in a checkpoint. As there, inverses are pinv(. + damping I); weight decay is ours.
    """

    provides = {"clippable", "first_order"}
    requires = {"backward", "low_rank", "trained_pair"}

    class Config(OptimizerConfig):
        lr: float = Field(2e-5, gt=0, le=1_000_000)
        variant: Literal["adamw", "sgd"] = "adamw"
        damping: float = Field(1e-8, gt=0, description="added to B^T B and A A^T before they are inverted")
        beta1: float = Field(0.9, ge=0, lt=1)
        beta2: float = Field(0.999, ge=0, lt=1)
        eps: float = Field(1e-8, gt=0)

    pairs: dict[Tensor, Pair]

    @classmethod
    def build(cls, params: list[ParamInfo], config: Config) -> LoRAPro:
        """A group of pairs and a group of everything else.

        Raises:
            ValueError: a factor has no partner that trains with it.
        """
        pairs = pairs_of(params)
        factors = {id(tensor) for pair in pairs for tensor in (pair.A, pair.B)}
        given = {id(info.param) for info in params}
        for info in params:
            alone = info.role == "lora_A" and id(info.param) not in factors
            if alone or (info.role == "lora_B" and id(info.partner) not in given):
                raise ValueError(
                    f"lora_pro moves both factors of a site and {info.name} trains alone; "
                    "choose optimizer adamw, or lora_fa where A is frozen"
                )
        rest = [info.param for info in params if id(info.param) not in factors]
        paired = [info.param for info in params if id(info.param) in factors]
        defaults = adam_defaults(config) | {"damping": config.damping, "variant": config.variant}
        groups = [{"params": members, "paired": members is paired} for members in (paired, rest) if members]
        optimizer = cls(groups, defaults)
        optimizer.pairs = {pair.B: pair for pair in pairs}
        return optimizer

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """One update.

        Raises:
            RuntimeError: one factor of a pair has a gradient and the other has none.
        """
        loss = loss_of(closure)
        for group in self.param_groups:
            for param in group["params"]:
                if not group["paired"]:
                    self._plain(param, group)
                elif param in self.pairs:
                    self._pair(self.pairs[param], group)
        return loss

    @torch.no_grad()
    def adjusted_gradients(self, B: Tensor) -> tuple[Tensor, Tensor] | None:
        """The adjusted gA' (r, n) and gB' (m, r) of the pair with this B (m, r), from the gradients there are now.

        None where a factor has no gradient, or B is no factor of a pair.
        """
        pair = self.pairs.get(B)
        if pair is None or pair.A.grad is None or pair.B.grad is None:
            return None
        solver = Solver.of(pair.A, pair.B, pair.scaling, self.defaults["damping"])
        return solver.adjusted(pair.A.grad, pair.B.grad)

    def load_state_dict(self, state_dict: StateDict) -> None:
        """Take the state back as it was saved, float32 whatever the factors are."""
        super().load_state_dict(state_dict)
        load_in_own_dtype(self, state_dict)

    def _pair(self, pair: Pair, group: Group) -> None:
        gA, gB = pair.A.grad, pair.B.grad
        if gA is None and gB is None:
            return
        if gA is None or gB is None:
            raise RuntimeError("lora_pro needs the gradients of both factors of a pair, and one has none")
        solver = Solver.of(pair.A, pair.B, pair.scaling, group["damping"])
        if group["variant"] == "adamw":
            state = self.state[pair.B]
            full = solver.equivalent(*solver.adjusted(gA, gB, balanced=False))
            if "exp_avg" not in state:
                start_moments(state, full)
            direction = adam_update(full, state, -1.0, group["betas"], group["eps"])
            gA, gB = solver.factor_gradients(direction)
        stepA, stepB = solver.adjusted(gA, gB)
        for factor, step in ((pair.A, stepA), (pair.B, stepB)):
            factor.mul_(1 - group["lr"] * group["weight_decay"]).add_(step, alpha=-group["lr"])

    def _plain(self, param: Tensor, group: Group) -> None:
        if param.grad is None:
            return
        param.mul_(1 - group["lr"] * group["weight_decay"])
        if group["variant"] == "sgd":
            param.add_(param.grad, alpha=-group["lr"])
            return
        state = self.state[param]
        if "exp_avg" not in state:
            start_moments(state, param)
        param.add_(adam_update(param.grad, state, group["lr"], group["betas"], group["eps"]))


@dataclass(frozen=True)
class Solver:
    """The least-squares problem of one pair at its current A (r, n) and B (m, r)."""

    A: Tensor
    B: Tensor
    scaling: float
    damping: float
    gram_A: Gram
    gram_B: Gram

    @classmethod
    def of(cls, A: Tensor, B: Tensor, scaling: float, damping: float) -> Solver:
        """Decompose A A^T and B^T B."""
        A, B = wide(A.detach()), wide(B.detach())
        return cls(A, B, scaling, damping, gram(A, damping), gram(B.mT, damping))

    def adjusted(self, gA: Tensor, gB: Tensor, balanced: bool = True) -> tuple[Tensor, Tensor]:
        """The adjusted gA' (r, n) and gB' (m, r); `balanced` by the X that keeps them near gA and gB, else X = 0."""
        inverse_B, scale = self.gram_B.inverse, 1 / self.scaling**2
        newA = scale * inverse_B @ wide(gA)
        seen = scale * wide(gB) @ self.gram_A.inverse
        newB = seen - self.B @ (inverse_B @ (self.B.mT @ seen))
        if balanced:
            X = sylvester(self.gram_B, self.gram_A, -newA @ self.A.mT, self.damping)
            newA, newB = newA + X @ self.A, newB - self.B @ X
        return newA, newB

    def equivalent(self, gA: Tensor, gB: Tensor) -> Tensor:
        """The step of the product, s (B gA + gB A), (m, n)."""
        return self.scaling * (self.B @ gA + gB @ self.A)

    def factor_gradients(self, full: Tensor) -> tuple[Tensor, Tensor]:
        """What backpropagation gives for a gradient (m, n) of the product: s B^T G and s G A^T."""
        return self.scaling * self.B.mT @ full, self.scaling * full @ self.A.mT
