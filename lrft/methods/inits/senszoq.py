"""SensZOQ: the entries with the largest squared gradients."""

from __future__ import annotations

import torch
from torch import Tensor

from lrft.core.adapter import Adapter
from lrft.core.entries import Entries
from lrft.core.frozen import Quantizer
from lrft.core.stages import Evidence, Init, Plan
from lrft.methods.inits._shares import asked, check_wanted, dealt, in_proportion, sizes
from lrft.ops.entries import largest
from lrft.registry.axes import INITS
from lrft.registry.config import Field, Literal, ResidualConfig, Source


@INITS.register
class SensZOQPlaces(Init):
    """Sensitivity choice: the entries of the largest squared gradients, taken out of the base at their exact values.

        F   = sum over documents of g * g,  g = dL/dW
        M   = the k largest entries of F
        S_0 = W where M, else 0
        base: W - S_0

    F is measured once, on `batches` documents of `source` (`data.format` says how they are read, the loss is that of
    their targets) or of the training rows. With `scope: model` k is the adapter's shares of all weights together and
    goes to the largest of all, and a weight without one of them is frozen whole; with `scope: layer` every weight has
    its own k. With `residual: rewrite` the base stores W - S_0, so that quantizing leaves the entries of M alone; with
    `residual: anchor` it keeps W, rounded whole, and the frozen start is subtracted beside it.

    Shapes: F, g (out, in), in float32. W' = W at step 0 up to rounding.
    Trains: what the adapter trains. The base gives up S_0.
    Source: as of `adapter: senszoq`, whose mask is of squared gradients of the language model's loss on C4.
    Departures: settled here: the paper's number of texts and whether k is counted over all weights are not known, so
    both are settings. Without `source` the mask is of the training rows, where the paper's is of pretraining text and
    serves all tasks. On quantized bases the default is `residual: anchor`, as everywhere; the paper's is `rewrite`.
    """

    requires = {"placed", "linear_delta", "backward"}
    residual = True

    config: Config

    class Config(ResidualConfig):
        batches: int = Field(32, gt=0, description="documents that squared gradients are summed over")
        scope: Literal["model", "layer"] = Field(
            "model", description="the largest of all weights together, or of every weight its own"
        )
        source: Source | None = Field(
            None, description="rows to measure on, in data.format; null: the training rows"
        )

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        self.need = "fisher" if config.source is None else "fisher@mask"
        self.needs = (self.need,)
        self.objective = None if config.source is None else "cross_entropy"

    def sources(self) -> dict[str, Source]:
        return {} if self.config.source is None else {"mask": self.config.source}

    def foresee(self, plan: Plan) -> Plan:
        """In proportion to the sizes of the weights."""
        if self.config.scope == "layer":
            return plan
        return in_proportion(plan, "entries", sizes(plan), _wanted(plan))

    def plan(self, plan: Plan, evidence: Evidence | None) -> Plan:
        """Deal the entries out by their sensitivity."""
        if self.config.scope == "layer":
            return plan
        assert evidence is not None
        signals = evidence.signals
        return dealt(plan, "entries", lambda name: signals[name][self.need], _wanted(plan))

    @torch.no_grad()
    def apply(self, adapter: Adapter, weight: Tensor, signal: dict[str, Tensor], quantize: Quantizer) -> None:
        assert isinstance(adapter, Entries)
        places = largest(signal[self.need], len(adapter.places))
        adapter.place(places)
        adapter.values.copy_(weight.flatten()[places.to(weight.device)])


def _wanted(plan: Plan) -> int:
    """Entries of all weights together."""
    totals = sizes(plan)
    return check_wanted(asked(plan, "entries", totals), sum(totals.values()), "adapter.entries")
