"""MeZO: descent along random directions, from two forward passes and no backward one."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import ClassVar, Literal

import torch
from torch import Tensor

from lrft.core.optimizer import Optimizer
from lrft.core.params import ParamInfo
from lrft.methods.optim._directions import Draw, seeded
from lrft.methods.optim._torch import Group
from lrft.registry.axes import OPTIMIZERS
from lrft.registry.config import Field, OptimizerConfig


@OPTIMIZERS.register
class MeZO(Optimizer):
    """Zeroth-order SGD: descent along random directions, from two forward passes and no backward one.

        g = (L(p + eps z) - L(p - eps z)) / (2 eps)
        p <- p - lr (g z + wd p)

    with p all trained parameters, L the loss on the whole step's batch, z ~ N(0, 1) in the parameter's dtype;
    eps = `eps`, lr = `lr`, wd = `weight_decay`. With `samples: n` g z is the mean of n estimates g_i z_i at the same p.
    z is never kept: it is drawn again from (`seed`, step, sample, name). The reported loss is L(p + eps z). Weight
    decay spares biases and norms, and no perturbation holds it. A step whose losses are not finite moves nothing and
    returns such a loss.

    Shapes: z as p; g one number.
    State: 0 bytes per number, a step count. During a step one copy of what trains, from which p is restored to the bit
    (`restore: exact`); `restore: in_place` holds no copy but adds eps z back, which leaves up to 2 units in the last
    place a step.
    Source: Malladi et al., "Fine-Tuning Language Models with Just Forward Passes", NeurIPS 2023, arXiv 2305.17333.
    Departures: one generator a parameter, so that z depends on no order; all norms are spared from decay, where the
    authors' code goes by names that miss those of LLaMA.
    Advice: in bfloat16 the part of an update under 2^-9 of a weight is lost: train float32 tensors, as adapters are.
    The authors' rates: LoRA 1e-4 or 5e-5 at `eps` 1e-2, all weights 1e-6 or 1e-7 at `eps` 1e-3, constant, for 20,000
    steps.
    """

    aliases = {
        "mezo zeroth_order zo_sgd": "optimizer: mezo\ntrain: {clip: null}",
    }

    calls_closure: ClassVar[bool] = True
    provides: ClassVar[set[str]] = {"entry_moments"}
    requires: ClassVar[set[str]] = {"eager"}  # what takes no gradients is not compiled

    class Config(OptimizerConfig):
        lr: float = Field(1e-4, gt=0, le=1_000_000)
        eps: float = Field(1e-2, gt=0, description="how far the two points lie from the parameters")
        samples: int = Field(1, gt=0, description="directions a step; each costs two forward passes")
        restore: Literal["exact", "in_place"] = "exact"
        seed: int = 0

    draw: Draw

    @classmethod
    def build(cls, params: list[ParamInfo], config: Config, draw: Draw | None = None) -> MeZO:
        """One group that decays, and one of biases and norms that does not.

        Args:
            draw: the directions, the same for the same arguments; by default from `seed`.
        """
        decaying = [(info.name, info.param) for info in params if _decays(info)]
        spared = [(info.name, info.param) for info in params if not _decays(info)]
        defaults = {"lr": config.lr, "weight_decay": config.weight_decay, "steps": 0}
        defaults |= {key: getattr(config, key) for key in ("eps", "samples", "restore")}
        groups: list[Group] = [{"params": decaying}, {"params": spared, "weight_decay": 0.0}]
        optimizer = cls([group for group in groups if group["params"]], defaults)
        optimizer.draw = draw or seeded(config.seed)
        return optimizer

    @torch.no_grad()
    def step(self, closure: Callable[[], Tensor]) -> Tensor:  # type: ignore[override]
        """Two calls of `closure` a sample, then one update.

        Args:
            closure: the loss of the whole step at the current parameters, a 0-d tensor; called twice at the same
                parameters it gives the same number, so dropout is off.
        """
        settings = self.param_groups[0]
        samples = settings["samples"]
        origin = [param.clone() for param, _, _ in self._moving()] if settings["restore"] == "exact" else None
        slopes, losses = [], []
        for sample in range(samples):
            eps = self._distance(settings, sample)
            ahead, behind = self._two_points(closure, sample, eps, origin)
            slopes.append(float(ahead - behind) / (2 * eps))
            losses.append(ahead)
            if not math.isfinite(slopes[-1]):
                return ahead - behind
        self._move_along(slopes)
        for group in self.param_groups:
            group["steps"] += 1
        return torch.stack(losses).mean()

    def _distance(self, settings: Group, sample: int) -> float:
        """How far the two points of a sample lie from the parameters."""
        return float(settings["eps"])

    def _move_along(self, slopes: list[float]) -> None:
        """The update by the slopes of all samples."""
        self._update([slope / len(slopes) for slope in slopes])

    def _two_points(
        self, closure: Callable[[], Tensor], sample: int, eps: float, origin: list[Tensor] | None
    ) -> tuple[Tensor, Tensor]:
        """The losses at p + eps z and p - eps z; the parameters come back to p."""
        self._shift(sample, eps, origin)
        ahead = closure()
        self._shift(sample, -2 * eps if origin is None else -eps, origin)
        behind = closure()
        self._shift(sample, eps if origin is None else 0.0, origin)
        return ahead, behind

    def _moving(self) -> Iterator[tuple[Tensor, str, Group]]:
        """Every parameter that trains at this step, with its name and group, in their fixed order."""
        for group in self.param_groups:
            for param, name in zip(group["params"], group["param_names"], strict=True):
                if param.requires_grad:
                    yield param, name, group

    def _shift(self, sample: int, distance: float, origin: list[Tensor] | None) -> None:
        """Move every p to p + distance z, from the copies in `origin` or from where it stands."""
        for index, (param, name, group) in enumerate(self._moving()):
            start = param if origin is None else origin[index]
            if distance == 0:
                param.copy_(start)
            else:
                torch.add(start, self.draw(param, name, group["steps"], sample), alpha=distance, out=param)

    def _update(self, slopes: list[float]) -> None:
        """One write of p - lr (mean of g z + wd p), formed in float32."""
        for param, name, group in self._moving():
            step = group["weight_decay"] * param.float()
            for sample, slope in enumerate(slopes):
                step.add_(self.draw(param, name, group["steps"], sample), alpha=slope)
            param.copy_(step.mul_(-group["lr"]).add_(param))


def _decays(info: ParamInfo) -> bool:
    return "bias" not in info.name and info.role != "vector"
