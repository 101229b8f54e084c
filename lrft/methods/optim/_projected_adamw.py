"""What the projected-gradient optimizers share: which tensors are projected, when the basis changes, plain AdamW."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, ClassVar, Self

import torch
from torch import Tensor, nn
from torch.optim.optimizer import StateDict

from lrft.core.optimizer import Optimizer, loss_of
from lrft.core.params import ParamInfo
from lrft.methods.optim._adam import adam_direction, corrected_rate, load_in_own_dtype
from lrft.methods.optim._projection import Basis, Draw, held, orthogonal_basis, seeded_draw, svd_basis
from lrft.methods.optim._torch import Group, State
from lrft.registry.config import Field, Literal, ProjectedConfig

BASE_ROLES = {"matrix", "embedding", "head"}


class ProjectedAdamW(Optimizer):
    """AdamW whose matrices of the roles in `project` are moved by `projected`, which a method fills in.

    A method's `Config` adds `side` and `eps`, which not all declare alike.

    Args:
        draw: random numbers for projections that are not computed from the gradient; by default from `seed`.

    Raises:
        ValueError: nothing can be projected, or a tensor that should be has other than two dimensions.
    """

    provides: ClassVar[set[str]] = {"clippable", "first_order", "per_parameter"}
    matrix_wise = True
    requires: ClassVar[set[str]] = {"backward"}

    class Config(ProjectedConfig):
        if TYPE_CHECKING:
            side: str
            eps: float | None
        rank: int = Field(
            128, gt=0, le=65_536, description="of the projected gradient; at most the smaller dimension"
        )
        update_every: int = Field(200, gt=0, description="steps between two choices of the subspace")
        scale: float = Field(0.25, gt=0, description="factor of the projected update")
        project: list[Literal["matrix", "embedding", "head", "lora_A", "lora_B", "core", "router"]] = Field(
            ["matrix"], min_length=1, description="roles of the tensors that are projected"
        )
        projection: Literal["svd", "random"] = Field(
            "svd", description="singular vectors of the gradient, or random directions"
        )
        state_dtype: Literal["float32"] | None = Field(
            None, description="of the moments and the projection; by default the parameter's"
        )
        seed: int = Field(0, description="of random projections")
        beta1: float = Field(0.9, ge=0, lt=1)
        beta2: float = Field(0.999, ge=0, lt=1)

    def __init__(self, params: list[ParamInfo], config: Config, draw: Draw | None = None) -> None:
        low = [info for info in params if info.role in config.project]
        _check(params, low, config.project)
        rest = [info for info in params if info.role not in config.project]
        groups: list[Group] = [
            {"params": [info.param for info in infos], "projected": infos is low}
            for infos in (low, rest)
            if infos
        ]
        super().__init__(groups, {"lr": config.lr, "weight_decay": config.weight_decay})
        self.config = config
        self.betas = (config.beta1, config.beta2)
        self.eps = config.eps or 0.0
        self.names = {info.param: info.name for info in params}
        self.draw = draw or seeded_draw(config.seed)

    @classmethod
    def build(cls, params: list[ParamInfo], config: Config, draw: Draw | None = None) -> Self:
        return cls(params, config, draw)

    def projected(self, state: State, grad: Tensor, basis: Basis, lr: float) -> tuple[Tensor, float]:
        """The direction (m, n) of a projected matrix and the rate it is taken at; `state["step"]` counts from 1."""
        raise NotImplementedError

    def plain(self, param: nn.Parameter, state: State, grad: Tensor, lr: float) -> None:
        """Move a tensor that is not projected, weight decay aside."""
        direction, rate = self.adam(state, grad, lr)
        param.add_(direction, alpha=-rate)

    def adam(self, state: State, grad: Tensor, lr: float) -> tuple[Tensor, float]:
        """Adam's direction, and its rate with the bias correction."""
        direction = adam_direction(state, grad, self.betas, self.eps)
        return direction, corrected_rate(lr, state["step"], self.betas)

    def interval(self, state: State) -> int:
        """Steps between two choices of a matrix's subspace."""
        return self.config.update_every

    def new_basis(self, grad: Tensor, name: str, refresh: int) -> Basis:
        """The subspace chosen at the `refresh`-th time."""
        if self.config.projection == "svd":
            return svd_basis(grad, self.config.rank, self.config.side)
        return orthogonal_basis(grad, self.config.rank, self.config.side, name, refresh, self.draw)

    def basis(self, state: State, grad: Tensor, name: str) -> Basis | None:
        """The subspace of this step, chosen anew when that is due; None before a first gradient.

        A gradient of zeros has no leading directions (that of LoRA's A is zero while B is), so the choice waits
        for the next one. Asking costs a wait for the device, as a decomposition does, at such steps only.
        """
        if state["due"] and (grad.is_meta or bool(grad.any())):
            state.update(self.new_basis(grad, name, state["refreshes"]))
            state.update(refreshes=state["refreshes"] + 1, due=False)
        return held(state)

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """Move every parameter that has a gradient; then weight decay, (1 - lr wd) p, as the authors order it."""
        loss = loss_of(closure)
        for group in self.param_groups:
            for param in group["params"]:
                if param.grad is not None:
                    self._move(param, group["projected"], group["lr"])
                    if group["weight_decay"]:
                        param.add_(param, alpha=-group["lr"] * group["weight_decay"])
        return loss

    def _move(self, param: nn.Parameter, is_projected: bool, lr: float) -> None:
        state, grad = self.state[param], param.grad
        assert grad is not None
        if self.config.state_dtype == "float32":
            grad = grad.float()
        if not state:
            state.update({"step": 0, "due": False, "refreshes": 0} if is_projected else {"step": 0})
        if not is_projected:
            state["step"] += 1
            return self.plain(param, state, grad, lr)
        state["due"] |= state["step"] % self.interval(state) == 0
        basis = self.basis(state, grad, self.names[param])
        state["step"] += 1
        if basis is not None:
            direction, rate = self.projected(state, grad, basis, lr)
            param.add_(direction, alpha=-rate)

    def load_state_dict(self, state_dict: StateDict) -> None:
        """Take the state back as it was saved, in its own dtypes."""
        super().load_state_dict(state_dict)
        load_in_own_dtype(self, state_dict)


def _check(params: list[ParamInfo], low: list[ParamInfo], roles: Sequence[str]) -> None:
    # A list of one may be one of many, each with an optimizer of its own: that of an embedding projects nothing,
    # nor that of a factor A where the factors B are projected.
    alone = len(params) == 1 and (not params[0].site or not BASE_ROLES.issuperset(roles))
    if not low and not alone:
        found = ", ".join(sorted({info.role for info in params}))
        raise ValueError(
            f"project: no trainable tensor has the role {' or '.join(roles)} (there are: {found}), so nothing would "
            "be projected; name roles that train, such as [lora_A, lora_B], or train base weights, or use adamw"
        )
    for info in low:
        if info.param.ndim != 2:
            raise ValueError(
                f"project: {info.name} has {info.param.ndim} dimensions and only matrices are projected; "
                f"leave {info.role} out of the list"
            )
