"""Random search."""

from __future__ import annotations

from lrft.core.search import Genes, Known, Search
from lrft.registry.axes import SEARCHES


@SEARCHES.register
class RandomSearch(Search):
    """Draw every key of a configuration for itself, whatever the others gave.

        x_k ~ uniform over the values of key k,  or log-uniform over a range with `log: true`

    A configuration that was drawn before, or is no valid recipe, is drawn again, so every arm is another one.

    Space: lists, choices, ranges, subsets (each item in or out with probability 1/2).
    State: none, as arm i is a function of (seed, i) and of which arms were drawn before it.
    Source: Bergstra and Bengio, "Random Search for Hyper-Parameter Optimization", JMLR 13, 2012.
    Departures: they draw with replacement.
    """

    def propose(self, index: int, known: Known) -> Genes | None:
        rng = self.rng(index)
        return self.new(known, lambda: self.draw(rng))
