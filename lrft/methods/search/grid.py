"""Grid search."""

from __future__ import annotations

from itertools import dropwhile

from lrft.core.search import Genes, Known, Search, every
from lrft.registry.axes import SEARCHES
from lrft.registry.config import Field, MethodConfig


@SEARCHES.register
class GridSearch(Search):
    """Try every combination of the values, the last key changing fastest.

        x_i = the i-th element of  V_1 x V_2 x ... x V_K  that is a valid recipe

    with V_k the values of key k; of a range, `points` numbers from end to end, evenly spaced, in the logarithm with
    `log: true`; of a subset, every combination of its items.

    Space: lists, choices, ranges, subsets.
    State: none.
    Source: the usual factorial design; no paper.
    Departures: none.
    Advice: a budget below the number of combinations leaves the first keys at their first values; `random` does not.
    """

    config: Config

    class Config(MethodConfig):
        points: int = Field(5, ge=2, le=1000, description="numbers that a range is tried at")

    def propose(self, index: int, known: Known) -> Genes | None:
        every_one = every(self.genes, self.config.points)
        if known.chosen:
            last = known.chosen[-1]
            every_one = dropwhile(lambda genes: genes != last, every_one)
        return next(filter(known.is_new, every_one), None)
