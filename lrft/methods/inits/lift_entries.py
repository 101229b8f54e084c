"""LIFT: the entries that are largest in a low-rank approximation of the pretrained weight."""

from __future__ import annotations

import torch
from torch import Tensor

from lrft.core.adapter import Adapter
from lrft.core.entries import Renewable
from lrft.core.frozen import Quantizer
from lrft.core.stages import Init
from lrft.registry.axes import INITS


@INITS.register
class LIFTPlaces(Init):
    """Principal weights: the adapter's entries begin where the rank-reduced weight is largest.

        places = the k largest entries of |W_f|,  W_f = the best approximation of rank f of W

    with f = `filter_rank` and k of the adapter, W the weight before it is quantized. No data is looked at.

    Shapes: W, W_f (out, in); W' = W at step 0.
    Trains: what the adapter trains. The base gives up nothing.
    Source: as of `adapter: lift_entries`.
    Departures: as of `adapter: lift_entries`.
    """

    provides = {"kept_base"}
    requires = {"placed", "renewable"}

    @torch.no_grad()
    def apply(self, adapter: Adapter, weight: Tensor, signal: dict[str, Tensor], quantize: Quantizer) -> None:
        assert isinstance(adapter, Renewable)
        adapter.place(adapter.wanted(weight))
