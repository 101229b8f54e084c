"""The adapter's own start: no change of the base."""

from __future__ import annotations

from lrft.core.stages import Init
from lrft.registry.axes import INITS


@INITS.register
class Default(Init):
    """The start that each adapter declares, at which W' = W.

        A ~ U(-1/sqrt(in), 1/sqrt(in)),  B = 0      for LoRA

    Kaiming-uniform with a = sqrt 5; other adapters start as their own pages say.

    Shapes: A (r, in), B (out, r); W' = W at step 0.
    Trains: what the adapter trains. The base gives up nothing: at step 0 the model is the base model.
    Source: Hu et al., 2021, arXiv 2106.09685, as in the authors' code.
    Departures: none.
    """

    aliases = {
        "true none kaiming kaiming_uniform": "init: default",
    }
    provides = {"kept_base"}
    requires = {"adapters"}
