"""The largest entries of every change, added up."""

from __future__ import annotations

from torch import Tensor

from lrft.core.adapter import Factors
from lrft.core.combine import Parts
from lrft.methods.combine._sum import weighted_sum
from lrft.methods.combine._trim import Trimming
from lrft.registry.axes import COMBINATIONS
from lrft.registry.config import Field, Literal, MethodConfig


@COMBINATIONS.register
class MagnitudePrune(Trimming):
    """Keep the largest entries of every change, and add what is left.

        delta = sum_t w_t tau_t,  tau_t = delta_t where |delta_t| is among its `density` largest, else 0

    with w_t the weight of parent t, 1 / N where none is given. `trim: site` looks at every layer for itself, as PEFT
    does; `model` at all of a parent's layers together. It is `ties` without an election, or `dare` without chance.

    Shapes: delta (out, in), written as factors of a rank that is asked for or follows from an error.
    Takes: two or more of any kind, by their changes.
    Source: PEFT's `add_weighted_adapter(combination_type="magnitude_prune_svd")`, read in 0.21.2.
    Departures: none from that; PEFT's `magnitude_prune`, which prunes factors, is not here.
    """

    config: Config

    class Config(MethodConfig):
        density: float = Field(0.2, gt=0, le=1)
        trim: Literal["model", "site"] = "site"

    def combine(self, site: str, parts: Parts) -> Factors | Tensor:
        return weighted_sum(self.kept(parts), self.weights)
