"""Bat: blocks of the weight, each times a small trained matrix of its row of blocks."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from lrft.core.adapter import Adapter, PeftForm
from lrft.core.params import Site
from lrft.registry.axes import ADAPTERS
from lrft.registry.config import AdapterConfig, Field
from lrft.registry.json import Json


def bat_form_keys(config: Bat.Config, with_start: bool) -> dict[str, Json]:
    """PEFT's keys of the method."""
    return {"peft_type": "MISS", "r": config.rank, "init_weights": "bat"}


@ADAPTERS.register
class Bat(Adapter):
    """Block affine transformation: every r x r block of the weight is turned by a matrix of its row of blocks.

        W'_ij = W_ij + W_ij D_i + D_i      block in row i, column j of blocks
        y     = x W'^T + b

    with r = `rank`, the side of the blocks, which divides both in and out. The change depends on the weight and can
    have full rank.

    Shapes: W_ij (r, r), i = 1 ... out / r, j = 1 ... in / r; D (out / r, r, r) = 0, so W' = W at step 0.
    Trains: r out numbers per site. The change is formed from the decoded weight at every step and once more in the
    backward pass, and is not kept.
    Source: Kang and Yin, "Bone: Block Affine Transformation", 2024, arXiv 2409.15371, whose first version this is as
    far as its abstract tells; named Bat in the second. The formula is that of PEFT's layer (`init_weights: bat`).
    Departures: none; dropout has no place in it.
    """

    aliases = {
        "bone": "adapter: bat",
    }
    provides = {"adapters", "mergeable"}
    roles = {"D": "core"}
    peft = PeftForm(bat_form_keys, names={"D": "miss_block"}, transposed=False)

    config: Config

    class Config(AdapterConfig):
        rank: int = Field(
            64, gt=0, le=65_536, description="side of the blocks; divides the inputs and the outputs"
        )

    def __init__(self, config: Config, site: Site) -> None:
        super().__init__(config, site)
        for kind, width in (("inputs", site.in_features), ("outputs", site.out_features)):
            if width % config.rank:
                raise ValueError(
                    f"rank {config.rank} does not divide the {width} {kind}; use a common divisor of "
                    f"{site.in_features} and {site.out_features}"
                )
        self.D = nn.Parameter(torch.zeros(site.out_features // config.rank, config.rank, config.rank))

    def reset(self) -> None:
        nn.init.zeros_(self.D)

    def delta_weight(self, weight: Tensor) -> Tensor:
        return _change(weight.float(), self.D).to(weight.dtype)

    @staticmethod
    def count(config: Config, site: Site) -> int:
        return int(config.rank * site.out_features)


def _blocks(matrix: Tensor, rank: int) -> Tensor:
    """(out, in) -> (out / r, in / r, r, r)."""
    blocks: Tensor = matrix.unflatten(0, (-1, rank)).unflatten(-1, (-1, rank))
    return blocks.permute(0, 2, 1, 3)


def _change(weight: Tensor, D: Tensor) -> Tensor:
    """W_ij D_i + D_i for all blocks, (out, in)."""
    turned = _blocks(weight, D.shape[-1]) @ D[:, None] + D[:, None]
    return turned.permute(0, 2, 1, 3).reshape(weight.shape)
