"""The same settings everywhere, patterns aside."""

from __future__ import annotations

from lrft.core.stages import Planner
from lrft.registry.axes import ALLOCATORS


@ALLOCATORS.register
class Uniform(Planner):
    """Every site gets the adapter section's rank and alpha, changed only where its patterns say so.

    Sites of shape (out, in) are planned alike; trains nothing of its own and changes nothing at step 0.
    Source: Hu et al., 2021, arXiv 2106.09685 (one rank for all matrices). Departures: none.
    """

    aliases = {
        "none fixed": "allocate: uniform",
    }
