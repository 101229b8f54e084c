"""Rows by chance."""

from __future__ import annotations

from random import Random

from lrft.core.data_selection import DataSelection, Measured, Selection, best
from lrft.registry.axes import DATA_SELECTIONS


@DATA_SELECTIONS.register
class RandomRows(DataSelection):
    """Draw rows without replacement, whatever they say: what every other selection has to beat.

        u_i ~ uniform(0, 1),  keep the rows of the highest u

    with i the place of a row. A larger budget of the same seed keeps the rows of a smaller one, and more.

    Needs: nothing.
    Score: u_i.
    Source: standard.
    Departures: none.
    """

    def choose(self, pool: Measured, target: Measured | None, budget: int, seed: int) -> Selection:
        rng = Random(seed)
        return Selection(best([rng.random() for _ in range(len(pool))], budget, lambda row: "drawn"))
