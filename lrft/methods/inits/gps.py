"""GPS: of every row of a weight the entries with the largest gradients."""

from __future__ import annotations

import torch
from torch import Tensor

from lrft.core.adapter import Adapter
from lrft.core.entries import Placed
from lrft.core.frozen import Quantizer
from lrft.core.stages import Init
from lrft.registry.axes import INITS
from lrft.registry.config import Field, MethodConfig


@INITS.register
class GPSPlaces(Init):
    """Gradient-based selection: in every row of the weight the entries of the largest gradient.

        G = dL/dW averaged over micro-batches
        places = the K largest entries of |G| in every row

    with G averaged over `batches` micro-batches of the training rows, K the adapter's `per_row`. A factor on the loss
    changes nothing. Every micro-batch counts alike, by the gradient of its mean loss, as a batch does in the code:
    where they differ in target tokens, rows cut into other micro-batches may choose other entries.

    Shapes: G (out, in); W' = W at step 0.
    Trains: what the adapter trains. The base gives up nothing.
    Source: as of `adapter: gps`, whose code sums the gradients of one pass over the data at the pretrained weights.
    Departures: the loss is the recipe's objective, where the code contrasts two views of an image, so that an untrained
    head has no say: a language model has no such head. Measured on `batches` micro-batches, not on all the data.
    """

    provides = {"kept_base"}
    requires = {"placed", "backward"}
    needs = ("grad",)

    config: Config

    class Config(MethodConfig):
        batches: int = Field(100, gt=0, description="training micro-batches the gradient is averaged over")

    @torch.no_grad()
    def apply(self, adapter: Adapter, weight: Tensor, signal: dict[str, Tensor], quantize: Quantizer) -> None:
        assert isinstance(adapter, Placed)
        size = signal["grad"].abs()
        if size.isnan().any():
            raise ValueError("its gradient is not finite; use other rows (data.train), or float32")
        out, width = size.shape
        columns = size.topk(len(adapter.places) // out, dim=1).indices.sort(1).values
        adapter.place((columns + torch.arange(out, device=columns.device)[:, None] * width).flatten())
