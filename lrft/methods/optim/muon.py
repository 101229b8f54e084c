"""Muon: momentum made orthogonal for matrices, AdamW for all else."""

from __future__ import annotations

from collections.abc import Callable

import torch

from lrft.core.optimizer import Optimizer, loss_of
from lrft.core.params import ParamInfo
from lrft.methods.optim._moments import adam_update, start_moments
from lrft.methods.optim._torch import Group
from lrft.registry.axes import OPTIMIZERS
from lrft.registry.config import Field, Literal, OptimizerConfig

ROLES = ("matrix", "lora_A", "lora_B", "core")  # what is a hidden matrix where it has two dimensions
SCALES = {"match_adamw": "match_rms_adamw", "original": "original"}  # as torch calls them


@OPTIMIZERS.register
class Muon(Optimizer, torch.optim.Muon):
    """Momentum orthogonalized by Newton-Schulz: a matrix moves alike far in all directions.

        m <- mu m + (1 - mu) g
        u  = mu m + (1 - mu) g,  or m with `nesterov: false`
        X  = u / |u|,  then `ns_steps` times  X <- a X + b (X X^T) X + c (X X^T)^2 X
        p <- (1 - lr wd) p - lr s X

    for hidden matrices p (rows, columns), which are those of the base model and factors and cores of adapters, with
    gradient g; lr = `lr`, wd = `weight_decay`, mu = `momentum`, a, b, c = 3.4445, -4.7750, 2.0315, |u| the Frobenius
    norm, X in bfloat16. `scale: match_adamw` has s = 0.2 sqrt(max(rows, columns)), so that updates are as large as
    AdamW's and lr is a rate for AdamW; `scale: original` has s = sqrt(max(1, rows / columns)). All else (embeddings,
    heads, vectors, factors of three dimensions) moves as under AdamW with the rate `adam_lr`, by default lr, the same
    decay, and `beta1`, `beta2`, `eps`.

    Shapes: m and X as p; m = 0 before the first step.
    State: 1 number per number of a hidden matrix, 4 bytes; 2 per number elsewhere, 8 bytes.
    Source: Jordan et al., "Muon: An optimizer for hidden layers in neural networks", 2024 (page and code); scale and
    decay: Liu et al., "Muon is Scalable for LLM Training", 2025, arXiv 2502.16982. Matrices are moved by
    torch.optim.Muon itself, all else as by torch.optim.AdamW, to the last bit.
    Departures: `weight_decay` is 0 unless the recipe says otherwise (0.1 in the second paper). Rows and columns are
    those of the stored tensor, also where a layer stores (in, out); only `scale: original` tells them apart.
    """

    aliases = {
        "torch.optim.muon": "optimizer: muon",
    }
    provides = {"clippable", "first_order", "per_parameter"}
    matrix_wise = True
    requires = {"backward"}

    class Config(OptimizerConfig):
        momentum: float = Field(0.95, ge=0, lt=1)
        nesterov: bool = True
        ns_steps: int = Field(5, gt=0, lt=100)
        scale: Literal["match_adamw", "original"] = "match_adamw"
        adam_lr: float | None = Field(None, gt=0)
        beta1: float = Field(0.9, ge=0, lt=1)
        beta2: float = Field(0.95, ge=0, lt=1)
        eps: float = Field(1e-8, gt=0)

    def __init__(self, groups: list[Group], defaults: Group) -> None:
        torch.optim.Optimizer.__init__(self, groups, defaults)  # torch's Muon would take nothing but matrices

    @classmethod
    def build(cls, params: list[ParamInfo], config: Config) -> Muon:
        hidden = [info.param for info in params if info.role in ROLES and info.param.ndim == 2]
        taken = set(hidden)
        rest = [info.param for info in params if info.param not in taken]
        matrices: Group = {
            "params": hidden,
            "momentum": config.momentum,
            "nesterov": config.nesterov,
            "ns_coefficients": (3.4445, -4.7750, 2.0315),
            "ns_steps": config.ns_steps,
            "eps": 1e-7,
            "adjust_lr_fn": SCALES[config.scale],
        }
        betas, rate = (config.beta1, config.beta2), config.adam_lr or config.lr
        others: Group = {"params": rest, "lr": rate, "betas": betas, "eps": config.eps}
        defaults = {"lr": config.lr, "weight_decay": config.weight_decay}
        return cls([group for group in (matrices, others) if group["params"]], defaults)

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """AdamW's step of what is no hidden matrix, then torch's of what is one."""
        loss = loss_of(closure)
        groups = self.param_groups
        for group in groups:
            for param in group["params"] if "betas" in group else ():
                if param.grad is not None:
                    state = self.state[param]
                    if not state:
                        start_moments(state, param)
                    param.mul_(1 - group["lr"] * group["weight_decay"])
                    param.add_(adam_update(param.grad, state, group["lr"], group["betas"], group["eps"]))
        self.param_groups = [group for group in groups if "betas" not in group]
        torch.optim.Muon.step(self)
        self.param_groups = groups
        return loss
