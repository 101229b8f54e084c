"""GPS: of every output neuron the few connections that matter most for the task train."""

from __future__ import annotations

from typing import Any

from lrft.core.entries import Entries
from lrft.core.params import Site
from lrft.registry.axes import ADAPTERS
from lrft.registry.config import Field, PlacedConfig


@ADAPTERS.register
class GPS(Entries):
    """Gradient-based parameter selection: as many entries of every row of the weight train.

        W' = W + S
        y  = x W'^T + b

    S is 0 but at K = `per_row` places of every row, which `init: gps` chooses; so every output has its say.

    Shapes: the values of S (K out) = 0, so W' = W at step 0; `places` (K out), row by row.
    Trains: K out numbers per site, K / in of W. Memory: 8 bytes a number for value and place, and the optimizer's
    state; the pass keeps its input alone. Where K is below in / 1,024, S is formed only to be added to W, in float32.
    Source: Zhang et al., "Gradient-based Parameter Selection for Efficient Fine-Tuning", CVPR 2024, and the authors'
    code (FightingFighting/GPS), whose selection and masks were read.
    Departures: carried from vision transformers to the linear layers of a language model. S is beside a base of any
    storage, on a dense one with 20 K out bytes in all, gradient and moments included, where the code masks the
    gradients of W, 12 in out bytes with its moments: there the norm that gradients are clipped by is of all of W and
    Adam has moments for all of it, here both are of the chosen entries; there weight decay shrinks what does not train,
    here it pulls differences to 0. Biases of linear layers, which the code trains too, are `trainable:
    ['*_proj.bias']`; those of norms, and norms, it freezes, as is done here; there is no head to train.
    Advice: `per_row: 1` is the paper's; at 4,096 inputs that is 0.024 % of W, so raise it to the budget wanted.
    """

    aliases = {
        "gradient_parameter_selection times_para": "adapter: {method: gps, per_row: 1}\ninit: gps",
    }
    provides = {"adapters", "mergeable", "linear_delta", "placed"}
    roles = {"values": "sparse"}

    config: Config

    class Config(PlacedConfig):
        per_row: int = Field(1, gt=0, description="entries of every row that train")

    def __init__(self, config: Config, site: Site) -> None:
        if config.per_row > site.in_features:
            raise ValueError(
                f"per_row {config.per_row} is more than the {site.in_features} inputs; use fewer"
            )
        super().__init__(config, site)

    @staticmethod
    def count(config: Any, site: Site) -> int:
        return int(config.per_row * site.out_features)
