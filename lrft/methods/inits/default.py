"""The adapter's own start: no change of the base."""

from __future__ import annotations

from lrft.core.stages import Init
from lrft.registry.axes import INITS


@INITS.register
class Default(Init):
    """The start each adapter declares, at which W' = W.

    For LoRA: A (r, in) ~ U(-1/sqrt(in), 1/sqrt(in)) (Kaiming uniform with a = sqrt 5), B (out, r) = 0.
    Trains nothing of its own; at step 0 the model is the base model.
    Source: Hu et al., 2021, arXiv 2106.09685, as in the authors' code. Departures: none.
    """

    aliases = {
        "true none kaiming kaiming_uniform": "init: default",
    }
    provides = {"kept_base"}
    requires = {"adapters"}
