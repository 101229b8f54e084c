"""LT-SFT composition: sparse differences, added."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from lrft.core.adapter import Factors
from lrft.core.combine import Combination, Parts
from lrft.methods.combine._sum import weighted_sum
from lrft.methods.combine._trim import above, thresholds
from lrft.registry.axes import COMBINATIONS
from lrft.registry.config import Field, MethodConfig


@COMBINATIONS.register
class LTSFTComposition(Combination):
    """Add sparse differences of one base: a language's and a task's, say, give the task in the language.

        W' = W + sum_t w_t phi_t,  phi_t = delta_t, or its `share` largest entries over all layers together

    with w_t the weight of parent t, 1 where none is given. Parents that `adapter: lt_sft` trained are sparse as they
    are; `share` makes others sparse, whose entries that stay are then not trained again.

    Shapes: phi (out, in), written as factors of a rank that is asked for or follows from an error: a sparse matrix is
    of full rank, so the factors hold all of it with `--error 0`, and `lrft merge --add` writes the sum as it is.
    Takes: two or more of any kind.
    Source: Ansell et al., "Composable Sparse Fine-Tuning for Cross-Lingual Transfer", ACL 2022, arXiv 2110.07560, and
    the authors' code (cambridgeltl/composable-sft), as far as `adapter: lt_sft` has it.
    Departures: `share` rewinds and trains nothing. A tie at the smallest entry that stays keeps all of it.
    """

    weighs = "sum"

    config: Config

    class Config(MethodConfig):
        share: float | None = Field(None, gt=0, le=1)

    def look(self, sites: Mapping[str, Parts]) -> None:
        if self.config.share is not None:
            self.reached = thresholds(sites, self.config.share)

    def combine(self, site: str, parts: Parts) -> Factors | Tensor:
        changes = [part.change() for part in parts]
        if self.config.share is not None:
            changes = [above(change, reach) for change, reach in zip(changes, self.reached, strict=True)]
        return weighted_sum(changes, self.weights)
