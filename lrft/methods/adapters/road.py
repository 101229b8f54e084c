"""RoAd: the outputs of a map are rotated and scaled in pairs."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from lrft.core.activations import OnActivations
from lrft.core.adapter import PeftForm
from lrft.core.params import Site
from lrft.ops.gains import turned
from lrft.registry.axes import ADAPTERS
from lrft.registry.config import AdapterConfig, Field, Literal

NUMBERS = {"road_1": 1, "road_2": 2, "road_4": 4}  # angles, and as many scales, of a pair


def road_form_keys(config: Any, with_start: bool) -> dict[str, Any]:
    """PEFT's keys of the method."""
    return {"peft_type": "ROAD", "variant": config.variant, "group_size": config.group_size}


@ADAPTERS.register
class RoAd(OnActivations):
    """2D rotary adaptation: every pair of outputs is turned by an angle and stretched.

        [u']   [a_11 cos t_11   -a_12 sin t_12] [u]
        [v'] = [a_21 sin t_21    a_22 cos t_22] [v],   y = R (x W^T + b),  W' = R W,  b' = R b

    with (u, v) two outputs, `group_size` / 2 apart within their group of `group_size` outputs, which divides out;
    R the block-diagonal matrix of all pairs. `variant: road_1` has one angle t and one scale a for a pair, `road_2` one
    for each of its two outputs (t_11 = t_12 and t_21 = t_22, a likewise), `road_4` all four.

    Shapes: t and a (k out / 2), k = 1, 2 or 4 of the variant; t = 0 and a = 1, so R = I and W' = W at step 0.
    Trains: k out numbers per site. Kept of a token beside: the out numbers that are turned, once.
    Source: Liao and Monz, "3-in-1: 2D Rotary Adaptation for Efficient Finetuning, Efficient Batching and
    Composability", NeurIPS 2024, arXiv 2409.00119; layout and order of t and a as in PEFT's layer, checked on the same
    numbers; the paper was not read.
    Departures: none from PEFT's layer. Neighbours form the pairs with `group_size: 2`.
    Advice: the outputs bear no order that matters, so `group_size` is a matter of serving; PEFT's run has road_2 and a
    learning rate of 1e-3. No weight decay, which would pull the scales to 0.
    """

    aliases = {
        "road1 rotary_adaptation": "adapter: road",
        "road2": "adapter: {method: road, variant: road_2}",
        "road4": "adapter: {method: road, variant: road_4}",
    }
    provides = {"adapters", "mergeable"}
    roles = {"theta": "core", "alpha": "magnitude"}
    peft = PeftForm(
        road_form_keys,
        names={"theta": "road_theta", "alpha": "road_alpha"},
        transposed=False,
        lacks=("bias",),
    )

    config: Config

    class Config(AdapterConfig):
        variant: Literal["road_1", "road_2", "road_4"] = Field(
            "road_1", description="how many angles, and as many scales, a pair of outputs has: 1, 2 or 4"
        )
        group_size: int = Field(
            64,
            gt=0,
            multiple_of=2,
            description="outputs of a group, whose halves are paired; divides the outputs",
        )

    def __init__(self, config: Config, site: Site) -> None:
        super().__init__(config, site)
        size, out = config.group_size, site.out_features
        if out % size:
            near = [d for d in range(2, out + 1, 2) if out % d == 0]
            remedy = (
                f"use {min(near, key=lambda d: abs(d - size))}" if near else "leave it out of adapter.targets"
            )
            raise ValueError(f"group_size {size} does not divide the {out} outputs; {remedy}")
        self.theta = nn.Parameter(torch.zeros(self.count(config, site) // 2))
        self.alpha = nn.Parameter(torch.ones_like(self.theta))

    def reset(self) -> None:
        nn.init.zeros_(self.theta)
        nn.init.ones_(self.alpha)

    def outputs(self, y: Tensor) -> Tensor:
        along, across = self.vectors()
        return turned(y, self.at_use(along), self.at_use(across), self.config.group_size // 2)

    def vectors(self) -> tuple[Tensor, Tensor]:
        """What an output is multiplied with, and what its partner is for it, (out,) each, signs left out."""
        size = self.config.group_size
        if self.config.variant == "road_4":
            theta, alpha = (part.view(-1, 2, size) for part in (self.theta, self.alpha))
            along, across = alpha[:, 0] * theta[:, 0].cos(), alpha[:, 1] * theta[:, 1].sin()
            return along.flatten(), across.flatten()
        along, across = self.alpha * self.theta.cos(), self.alpha * self.theta.sin()
        if self.config.variant == "road_2":
            return along, across
        both = (part.view(-1, 1, size // 2).expand(-1, 2, -1).flatten() for part in (along, across))
        return next(both), next(both)

    @staticmethod
    def count(config: Any, site: Site) -> int:
        return NUMBERS[config.variant] * site.out_features
