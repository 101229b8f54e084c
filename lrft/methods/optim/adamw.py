"""AdamW: Adam with decoupled weight decay."""

from __future__ import annotations

from typing import ClassVar, TypedDict

import torch

from lrft.core.optimizer import Optimizer
from lrft.core.params import ParamInfo
from lrft.registry.axes import OPTIMIZERS
from lrft.registry.config import Field, OptimizerConfig


class Settings(TypedDict):
    """What torch's AdamW is made with."""

    lr: float
    betas: tuple[float, float]
    eps: float
    weight_decay: float
    foreach: bool
    fused: bool


@OPTIMIZERS.register
class AdamW(Optimizer, torch.optim.AdamW):
    """Adam with decoupled weight decay, in float32.

        p <- (1 - lr wd) p
        m <- b1 m + (1 - b1) g,  v <- b2 v + (1 - b2) g^2
        p <- p - lr (m / (1 - b1^t)) / (sqrt(v / (1 - b2^t)) + eps)

    with g the gradient of the parameter p, t the step, counted from 1; lr = `lr`, wd = `weight_decay`, b1 = `beta1`,
    b2 = `beta2`, eps = `eps`. Weight decay acts on every parameter, as in torch; it is 0 unless the recipe says
    otherwise.

    Shapes: m and v as p, both 0 before the first step.
    State: 2 numbers per parameter, m and v in float32: 8 bytes.
    Source: Loshchilov and Hutter, "Decoupled Weight Decay Regularization", ICLR 2019, arXiv 1711.05101.
    Departures: none (torch.optim.AdamW).
    """

    aliases = {
        "adamw_torch adamw_torch_fused adamw_hf adamw_torch_xla adamw_torch_npu_fused adamw_apex_fused "
        "adamw_anyprecision fused_adamw adamw_fused torch.optim.adamw": "optimizer: adamw",
    }
    provides = {"clippable", "first_order", "per_parameter", "entry_moments"}
    requires = {"backward"}
    lighter: ClassVar[str | None] = "adamw8bit"

    class Config(OptimizerConfig):
        beta1: float = Field(0.9, ge=0, lt=1)
        beta2: float = Field(0.999, ge=0, lt=1)
        eps: float = Field(1e-8, gt=0)

    @classmethod
    def build(cls, params: list[ParamInfo], config: Config) -> torch.optim.Optimizer:
        return cls([{"params": [info.param for info in params]}], **cls.settings(params, config))

    @staticmethod
    def settings(params: list[ParamInfo], config: Config) -> Settings:
        """The constructor's arguments.

        The kernel is chosen here, once, and travels in the state: a resumed run uses that of its first part.
        """
        return {
            "lr": config.lr,
            "betas": (config.beta1, config.beta2),
            "eps": config.eps,
            "weight_decay": config.weight_decay,
            "foreach": False,
            "fused": all(info.param.is_cuda for info in params),
        }

    @classmethod
    def state_bytes(cls, info: ParamInfo, config: Config) -> int:
        return 2 * info.param.nbytes
