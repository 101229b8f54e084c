"""Rows that stand high in some target row's own order of the pool."""

from __future__ import annotations

import torch

from lrft.core.data_selection import DataSelection, Measured, Selection, best
from lrft.methods.data_selection._distance import cosines
from lrft.registry.axes import DATA_SELECTIONS
from lrft.registry.config import Field, Literal, MethodConfig


@DATA_SELECTIONS.register
class BETR(DataSelection):
    """Benchmark-targeted ranking: every target row ranks the pool, and a row has the best rank that any gave it.

        r_tj = the rank, from 1, of row j by cos(e_t, e_j) among all rows, for target row t
        score_j = max over t of log2(1 / r_tj),  or the mean over t with `over: mean`

    with e the embeddings. Ranks and no thresholds: what the similarities are says nothing, only which is larger.

    Needs: an embedding of every row and target row.
    Score: as above, 0 for the row nearest to some target row.
    Source: "Language Models Improve When Pretraining Data Matches Target Tasks", 2025, arXiv 2507.12466, sections 2
    and 3.
    Departures: theirs score a sample of the pool and train a classifier by it, for pools of billions of documents; a
    pool to fine-tune on is scored whole. The encoder is the recipe's own base (the mean of its last hidden states) and
    no embedding model. The budget is rows and not tokens.
    Advice: give as many target rows of each task, and never those that are scored in the end.
    """

    need = "embeddings"
    targeted = True

    config: Config

    class Config(MethodConfig):
        over: Literal["max", "mean"] = Field(
            "max", description="max: what serves one target row best; mean: what serves many of them"
        )

    def choose(self, pool: Measured, target: Measured | None, budget: int, seed: int) -> Selection:
        assert pool.features is not None and target is not None and target.features is not None
        order = cosines(target.features, pool.features).argsort(dim=1, descending=True, stable=True)
        ranks = torch.empty_like(order)
        places = torch.arange(1, len(pool) + 1).expand_as(order)
        ranks.scatter_(1, order, places)
        values = ranks.double().reciprocal().log2()
        scores = values.amax(0) if self.config.over == "max" else values.mean(0)
        least, nearest = ranks.min(0)
        firsts: list[int] = least.tolist()
        targets: list[int] = nearest.tolist()

        def reason(row: int) -> str:
            return f"number {firsts[row]} for {target.where(targets[row])}"

        return Selection(best(scores.tolist(), budget, reason))
