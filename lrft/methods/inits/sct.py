"""SCT: let the channels be tuned that are largest on the training rows."""

from __future__ import annotations

import torch
from torch import Tensor

from lrft.core.adapter import Adapter
from lrft.core.frozen import Quantizer
from lrft.core.stages import Init
from lrft.ops.entries import largest
from lrft.registry.axes import INITS
from lrft.registry.config import Field, MethodConfig


@INITS.register
class SCTChannels(Init):
    """Salient channels: those outputs of a layer are tuned that are largest on the training rows.

        R = the N outputs of largest L2 norm over the tokens of `batches` micro-batches

    with N the number of channels that the adapter tunes at a site. Of channels of one norm the first are taken.

    Shapes: R (N). The matrix keeps the small random start of the adapter, so W' is near W at step 0 and not W.
    Trains: what the adapter trains. The base gives up nothing.
    Source: Zhao et al., "SCT: A Simple Baseline for Parameter-Efficient Fine-Tuning via Salient Channels", IJCV 2023,
    arXiv 2309.08513, and the authors' code, in which the frozen model runs over the training images once.
    Departures: carried over from images: one class instead of a mean over classes, all tokens instead of all but the
    class token, outputs of the layer instead of the residual stream that they join (signal `output_norm`).
    """

    provides = {"kept_base", "moved_start"}
    requires = {"chosen_channels"}
    needs = ("output_norm",)

    config: Config

    class Config(MethodConfig):
        batches: int = Field(64, gt=0, description="micro-batches that outputs are measured over")

    @torch.no_grad()
    def apply(self, adapter: Adapter, weight: Tensor, signal: dict[str, Tensor], quantize: Quantizer) -> None:
        channels = adapter.get_buffer("channels")
        channels.copy_(largest(signal["output_norm"], len(channels)))
