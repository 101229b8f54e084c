"""Rows by how well the model knows them already."""

from __future__ import annotations

import math

from lrft.core.data_selection import DataSelection, Measured, Selection, best
from lrft.registry.axes import DATA_SELECTIONS
from lrft.registry.config import Field, Literal, MethodConfig


@DATA_SELECTIONS.register
class Perplexity(DataSelection):
    """Keep the rows in the middle, or at an end, of the order by perplexity under the model.

        l_i = -1/n_i sum over learnt tokens t of log p(x_t | x_<t),  perplexity_i = exp(l_i)
        score_i = -|rank_i - (N - 1) / 2|,  or l_i with `keep: high`, -l_i with `keep: low`

    with n_i the learnt tokens of row i and rank_i its place, from 0, in the order of l among the N rows.

    Needs: the loss of every row, a forward pass each.
    Score: as above; of the middle, minus the distance from it in rows.
    Source: Marion et al., "When Less is More: Investigating Data Pruning for Pretraining LLMs at Scale", 2023, arXiv
    2309.04564, where the middle of the perplexities is the best of the simple measures.
    Departures: the loss is that of the tokens the recipe learns; theirs is of whole documents, which `data.format:
    text` gives. Theirs is a reference model of its own; here it is the recipe's base, or a run.
    """

    need = "losses"

    config: Config

    class Config(MethodConfig):
        keep: Literal["middle", "low", "high"] = Field("middle", description="which perplexities are kept")

    def choose(self, pool: Measured, target: Measured | None, budget: int, seed: int) -> Selection:
        assert pool.features is not None, "losses were asked for"
        losses: list[float] = pool.features[:, 0].tolist()
        scores = losses if self.config.keep == "high" else [-loss for loss in losses]
        if self.config.keep == "middle":
            order = sorted(range(len(losses)), key=losses.__getitem__)
            middle = (len(losses) - 1) / 2
            scores = [0.0] * len(losses)
            for rank, row in enumerate(order):
                scores[row] = -abs(rank - middle)
        return Selection(best(scores, budget, lambda row: f"perplexity {_shown(losses[row])}"))


def _shown(loss: float) -> str:
    return f"{math.exp(loss):.4g}" if loss < 700 else f"e^{loss:.4g}"
