"""TIES: trim, elect a sign, merge what bears it."""

from __future__ import annotations

from torch import Tensor

from lrft.core.adapter import Factors
from lrft.core.combine import Parts
from lrft.methods.combine._signs import merge_elected
from lrft.methods.combine._trim import Trimming
from lrft.registry.axes import COMBINATIONS
from lrft.registry.config import Field, Literal, MethodConfig


@COMBINATIONS.register
class TIES(Trimming):
    """Trim every change to its largest entries, elect a sign for each place, average the entries that bear it.

        trim:   tau_t = delta_t where |delta_t| is among its `density` largest, else 0
        elect:  g = sign(sum_t tau_t), or sign(sum_t sign(tau_t)) with `elect: count`; 0 elects plus
        merge:  delta = scale * sum_{t: sign(tau_t) = g} w_t tau_t / |{t: sign(tau_t) = g}|

    with w_t the weight of parent t (1 where none is given) and `scale` the paper's lambda. `trim: model` takes the
    largest entries of all layers together, as the paper does; `site` those of each layer, as PEFT does.

    Shapes: delta (out, in), written as factors of a rank that is asked for or follows from an error.
    Takes: two or more of any kind, by their changes.
    Source: Yadav et al., "TIES-Merging", NeurIPS 2023, arXiv 2306.01708, and PEFT's `ties_svd`, read in 0.21.2.
    Departures: the sum of the weights divides nothing, as in PEFT. The authors' code keeps one entry more of a parent,
    and lets most signs of all places decide where a sum is 0. PEFT's `ties`, which trims the factors A and B apart
    from each other and so no change of a weight, is not here.
    """

    weighs = "sum"

    config: Config

    class Config(MethodConfig):
        density: float = Field(0.2, gt=0, le=1)
        elect: Literal["mass", "count"] = Field("mass", description="the sign of the sum, or of most parents")
        trim: Literal["model", "site"] = "model"
        scale: float = Field(1.0, gt=0)

    def combine(self, site: str, parts: Parts) -> Factors | Tensor:
        return self.config.scale * merge_elected(self.kept(parts), self.weights, self.config.elect)
