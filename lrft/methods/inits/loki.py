"""LoKI: let the rows train whose outputs are most often among the least for the model's own answers."""

from __future__ import annotations

import torch
from torch import Tensor

from lrft.core.adapter import Adapter
from lrft.core.frozen import Quantizer
from lrft.core.stages import Init
from lrft.ops.entries import largest
from lrft.registry.axes import INITS
from lrft.registry.config import AdapterConfig, Field, MethodConfig, Source


@INITS.register
class LoKIRows(Init):
    """Knowledge vectors by integrated gradients: the rows that do least for the model's own answers train.

        c_j = number of prompts in which row j is among the k of least attribution
        R   = the k rows of largest c

    with k the number of rows that the adapter trains at a site, alike in all layers of one width (layer-balanced). The
    attribution of row j is that of output j of the layer: integrated gradients of the logit of the most likely answer,
    at the last token of the prompt (signal `low_attribution`). c is counted over `batches` documents of the training
    rows, or of the rows in `data`. Of rows with one count the first are taken.

    Shapes: R (k). The model is the pretrained one at step 0.
    Trains: what the adapter trains. The base gives up nothing.
    Source: Wang et al., "LoKI: Low-damage Knowledge Implanting of Large Language Models", AAAI 2026, arXiv
    2505.22120, and the authors' code, which counts over the prompts of MMLU.
    Departures: those of the signal. Ties are left open there.
    Advice: `data` are questions about what is to be kept, such as MMLU's; the training rows are what is new. A document
    costs one forward and backward pass of 7 rows for every site.
    """

    provides = {"kept_base"}
    requires = {"chosen_rows"}

    config: Config

    class Config(MethodConfig):
        data: Source | None = Field(
            None, description="rows that are counted over, in data.format; by default the training rows"
        )
        batches: int = Field(256, gt=0, description="documents that are counted over")

    @property
    def needs(self) -> tuple[str, ...]:  # type: ignore[override]
        """The counts over the training rows, or over those in `data`."""
        return ("low_attribution",) if self.config.data is None else ("low_attribution@data",)

    def sources(self) -> dict[str, Source]:
        return {} if self.config.data is None else {"data": self.config.data}

    def signal_options(self, name: str, config: AdapterConfig) -> dict[str, object]:
        return {"percent": config.percent}  # type: ignore[attr-defined]

    @torch.no_grad()
    def apply(self, adapter: Adapter, weight: Tensor, signal: dict[str, Tensor], quantize: Quantizer) -> None:
        rows = adapter.get_buffer("rows")
        rows.copy_(largest(signal[self.needs[0]], len(rows)))
