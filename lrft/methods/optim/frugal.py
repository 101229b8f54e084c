"""FRUGAL: Adam in a changing part of every matrix, sign-SGD in the rest."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, Self

import torch
from torch import Tensor
from torch.optim.optimizer import StateDict

from lrft.core.optimizer import Optimizer, loss_of
from lrft.core.params import ParamInfo
from lrft.methods.optim._adam import adam_defaults, load_in_own_dtype
from lrft.methods.optim._frugal_fit import check_blocks, check_matrix
from lrft.methods.optim._frugal_subspace import (
    Generators,
    active_blocks,
    add_up,
    down,
    draw,
    outside,
    seeded,
)
from lrft.methods.optim._moments import adam_update, start_moments
from lrft.methods.optim._torch import Group
from lrft.registry.axes import OPTIMIZERS
from lrft.registry.config import Field, ProjectedConfig, model_validator

# What a group of projected parameters carries, and a checkpoint with it.
SETTINGS = [
    *("density", "update_every", "choice", "side", "order", "reset_statistics"),
    *("state_free", "inactive_lr_scale", "proj_lr_scale"),
]


@OPTIMIZERS.register
class FRUGAL(Optimizer):
    """Full-rank updates: Adam's state for a changing fraction of every projected matrix, sign-SGD in the rest.

        every T steps:  choose a subspace of W
        Gd = down(G),  Gr = G - up(Gd)
        W <- (1 - lr wd) W
        W <- W + up(AdamW step from Gd at rate a lr) - a c lr sign(Gr)

    with G the gradient of W, down and up the ways into the subspace and back; T = `update_every`, a = `proj_lr_scale`,
    c = `inactive_lr_scale`, lr = `lr`, wd = `weight_decay`; Adam's `beta1`, `beta2`, `eps`. `state_free: sign_sgd` is
    this step, `state_free: sgd` has Gr for sign(Gr), `state_free: none` leaves it out. With `reset_statistics: true`
    moments and step count start again from 0 at every choice. What a subspace is, `choice` says:

        choice: columns, rows, randk     int(density length) random columns, rows or entries
        choice: svd                      leading singular vectors of the G of that step
        choice: random, randperm         random orthonormal vectors, or unit vectors
        choice: block                    round(density count) whole matrices have moments, the others none

    with density = `density`. For `svd`, `random`, `randperm` it is a projector P of rank round(density length) on one
    `side`; `side: std` compresses the smaller dimension, as GaLore. `block` goes through the matrices in `order` and is
    always reset at a switch. Draws come from `seed`. `project` names the roles of the tensors W; all other parameters
    move by AdamW and are never reset. In a coordinate choice sign(0) = 0 keeps chosen columns clean; under a projector
    the sign of Gr is not orthogonal to it.

    Shapes: W, G, Gr (out, in); Gd and its moments in the sliced shape, for `columns` (out, k); 0 before the first step.
    State: 2 numbers per parameter of the chosen part and of what is not projected, 8 bytes (float32 weights; 4 for
    bfloat16); besides 8 bytes a chosen column or row, 16 an entry (int64), and P, 4 r min(out, in) bytes.
    Source: Zmushko et al., "FRUGAL", ICML 2025, arXiv 2411.07837, and the authors' code.
    Departures: the period counts the optimizer's steps and holds for each parameter by itself, whatever gradients are
    missing; at full rank Gr is exactly 0 (theirs is rounding, whose sign is a full step); no two-sided projector, which
    is not reproducible with SVD; the stateful part is AdamW alone; `order: mirror` refuses an odd count of matrices, of
    which theirs would never reach the middle one.
    Advice: sign steps do not shrink with the gradient: decay the rate. Pre-training there: `choice: block`;
    fine-tuning: `choice: columns`, `inactive_lr_scale: 0.1`, `update_every: 500`.
    """

    provides = {"clippable", "first_order"}
    matrix_wise = True
    requires = {"backward"}

    class Config(ProjectedConfig):
        lr: float = Field(1e-3, gt=0, le=1_000_000)
        density: float = Field(
            0.25, ge=0, le=1, description="share of the projected weights that has moments"
        )
        update_every: int = Field(
            200, gt=0, description="optimizer steps between two choices of the subspace"
        )
        choice: Literal["columns", "rows", "randk", "block", "svd", "random", "randperm"] = "columns"
        side: Literal["std", "reverse_std", "left", "right"] = Field(
            "std", description="of svd, random, randperm"
        )
        order: Literal["descending", "ascending", "mirror", "random"] = Field(
            "descending", description="in which order `block` goes through the matrices"
        )
        state_free: Literal["sign_sgd", "sgd", "none"] = "sign_sgd"
        inactive_lr_scale: float = Field(1.0, ge=0)
        proj_lr_scale: float = Field(1.0, ge=0)
        reset_statistics: bool = True
        project: list[Literal["matrix", "embedding", "head", "vector", "lora_A", "lora_B", "core"]] = Field(
            ["matrix"], description="roles of the parameters that are projected"
        )
        seed: int = 0
        beta1: float = Field(0.9, ge=0, lt=1)
        beta2: float = Field(0.999, ge=0, lt=1)
        eps: float = Field(1e-8, gt=0)

        @model_validator(mode="after")
        def _blocks_start_afresh(self) -> Self:
            if self.choice == "block" and not self.reset_statistics:
                raise ValueError("choice block frees the moments at a switch; write reset_statistics: true")
            return self

    generators: Generators

    @classmethod
    def build(cls, params: list[ParamInfo], config: Config, generators: Generators | None = None) -> FRUGAL:
        """Two groups: what is projected, and the rest.

        Args:
            generators: for the draws of a choice; by default a function of (seed, tensor, period) alone.

        Raises:
            ValueError: nothing is projected, or the choice does not fit the shapes or the count of what is.
        """
        projected = [info for info in params if info.role in config.project]
        _check(params, projected, config)
        rest = [(info.name, info.param) for info in params if info.role not in config.project]
        settings = {key: getattr(config, key) for key in SETTINGS}
        group = {"params": [(info.name, info.param) for info in projected], "steps": 0, **settings}
        defaults = adam_defaults(config)
        optimizer = cls([*([{"params": rest}] if rest else []), group], defaults)
        optimizer.generators = generators or seeded(config.seed)
        return optimizer

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """One update of every parameter that has a gradient."""
        loss = loss_of(closure)
        for group in self.param_groups:
            active = self._active(group) if group.get("choice") == "block" else []
            for position, param in enumerate(group["params"]):
                if param.grad is None:
                    continue
                param.mul_(1 - group["lr"] * group["weight_decay"])
                if "choice" not in group:
                    self._adamw(param, group, group["lr"])
                elif group["choice"] == "block":
                    self._block(param, group, position in active)
                else:
                    self._split(param, group, group["param_names"][position])
            if "choice" in group and any(param.grad is not None for param in group["params"]):
                group["steps"] += 1
        return loss

    def load_state_dict(self, state_dict: StateDict) -> None:
        """Take the state back as it was saved, indices as integers."""
        super().load_state_dict(state_dict)
        load_in_own_dtype(self, state_dict)

    def _adamw(self, param: Tensor, group: Group, lr: float) -> None:
        state = self.state[param]
        if "exp_avg" not in state:
            start_moments(state, param)
        assert param.grad is not None
        param.add_(adam_update(param.grad, state, lr, group["betas"], group["eps"]))

    def _active(self, group: Group) -> list[int]:
        """Positions of the matrices that have moments in this period; drawn once, and kept with the group."""
        if group.get("drawn") != _period(group):
            count, period = len(group["params"]), _period(group)
            turn = round(count * group["density"])
            group["active"] = active_blocks(count, turn, period, group["order"], self.generators("", period))
            group["drawn"] = period
        active: list[int] = group["active"]
        return active

    def _block(self, param: Tensor, group: Group, active: bool) -> None:
        """A whole matrix: AdamW while it is active, the state-free rule while it is not."""
        state = self.state[param]
        if state.get("period") != _period(group):
            state.clear()
            state["period"] = _period(group)
        if active:
            self._adamw(param, group, group["lr"] * group["proj_lr_scale"])
        else:
            assert param.grad is not None
            _state_free(param, param.grad, group)

    def _split(self, param: Tensor, group: Group, name: str) -> None:
        """A matrix (m, n): AdamW inside the subspace, the state-free rule outside."""
        state, grad, choice = self.state[param], param.grad, group["choice"]
        assert grad is not None
        if state.get("period") != _period(group) and _tells_a_subspace(grad, choice):
            state.update(
                draw(grad, choice, group["side"], group["density"], self.generators(name, _period(group)))
            )
            state["period"] = _period(group)
            if group["reset_statistics"]:
                state.pop("exp_avg", None)
        if "period" not in state:
            return
        part = down(grad, choice, state)
        if "exp_avg" not in state:
            start_moments(state, part)
        rate = group["lr"] * group["proj_lr_scale"]
        add_up(param, adam_update(part, state, rate, group["betas"], group["eps"]), choice, state)
        if group["state_free"] != "none":
            _state_free(param, outside(grad, part, choice, state), group)


def _tells_a_subspace(grad: Tensor, choice: str) -> bool:
    """A gradient of zeros has no leading directions, that of LoRA's A while B is 0: the choice waits for the next."""
    return choice != "svd" or grad.is_meta or bool(grad.any())


def _state_free(param: Tensor, grad: Tensor, group: Group) -> None:
    if group["state_free"] != "none":
        direction = grad.sign() if group["state_free"] == "sign_sgd" else grad
        param.add_(direction, alpha=-group["lr"] * group["proj_lr_scale"] * group["inactive_lr_scale"])


def _period(group: Group) -> int:
    """Which choice of the subspace is in force."""
    return int(group["steps"] // group["update_every"])


def _check(params: list[ParamInfo], projected: list[ParamInfo], config: FRUGAL.Config) -> None:
    if not projected:
        roles = ", ".join(sorted({info.role for info in params}))
        raise ValueError(f"project: no parameter has a role in {config.project}; the roles here are {roles}")
    if config.choice == "block":
        check_blocks(len(projected), config.density, config.order)
        return
    for info in projected:
        check_matrix(info, config.choice, config.side, config.density)
