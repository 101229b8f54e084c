"""The same settings everywhere, patterns aside."""

from __future__ import annotations

from lrft.core.stages import Planner
from lrft.registry.axes import ALLOCATORS


@ALLOCATORS.register
class Uniform(Planner):
    """The same rank and alpha at every site, changed only where the adapter's patterns say so.

        rank_i = `adapter.rank`,  alpha_i = `adapter.alpha`      at every site i that no pattern matches

    Shapes: those of the adapter at every site (out, in); changes nothing at step 0.
    Trains: what the adapter trains, the same settings at every site.
    Source: Hu et al., 2021, arXiv 2106.09685 (one rank for all matrices).
    Departures: none.
    """

    aliases = {
        "none fixed": "allocate: uniform",
    }
