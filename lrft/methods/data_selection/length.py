"""Rows by the length of what is learnt of them."""

from __future__ import annotations

from lrft.core.data_selection import DataSelection, Measured, Selection, best
from lrft.registry.axes import DATA_SELECTIONS
from lrft.registry.config import Field, Literal, MethodConfig


@DATA_SELECTIONS.register
class Length(DataSelection):
    """Keep the rows with the longest answers, a baseline that is hard to beat in instruction tuning.

        score_i = n_i,  or -n_i with `order: shortest`

    with n_i the tokens that are learnt of row i.

    Needs: token counts alone; no model runs.
    Score: the tokens learnt.
    Source: Zhao et al., "Long Is More for Alignment", 2024, arXiv 2402.04833, who keep the 1,000 longest responses.
    Departures: the count is of the tokens that the recipe learns, its stop token among them.
    """

    config: Config

    class Config(MethodConfig):
        order: Literal["longest", "shortest"] = Field("longest", description="which answers are kept")

    def choose(self, pool: Measured, target: Measured | None, budget: int, seed: int) -> Selection:
        sign = 1 if self.config.order == "longest" else -1
        scores = [float(sign * learnt) for learnt in pool.learnt]
        return Selection(best(scores, budget, lambda row: f"{pool.learnt[row]} tokens learnt"))
