"""AFM's start: the principal axes of a layer's outputs."""

from __future__ import annotations

import torch
from torch import Tensor

from lrft.core.adapter import Adapter
from lrft.core.frozen import Quantizer
from lrft.core.stages import Init
from lrft.ops.linalg import truncated_svd
from lrft.registry.axes import INITS
from lrft.registry.config import Field, MethodConfig


@INITS.register
class AFMAxes(Init):
    """The leading principal axes of what a layer gives on the training rows.

        C = M - m m^T = R R^T,  U_r = the r leading left singular vectors of W R
        B = U_r,  A = U_r^T W,  c = (1 - U_r U_r^T) W m

    with M and m the second moment and the mean of the layer's inputs over `batches` micro-batches (signal
    `input_moments`), so that W C W^T is the covariance of its outputs and U_r its axes. With `adapter.shift: false`
    C is M, and there is no c.

    Shapes: W (out, in), C, R (in, in), U_r (out, r). The model at step 0 is the base with every layer's output
    projected, and not the base.
    Trains: what the adapter trains. The base gives up nothing.
    Source: that of `adapter: afm`; in its code the covariance is of the outputs and decomposed itself.
    Departures: none in what is found. R stands for the covariance of the outputs, which may be larger.
    """

    provides = {"kept_base", "moved_start"}
    requires = {"feature_axes"}
    needs = ("input_moments",)

    config: Config

    class Config(MethodConfig):
        batches: int = Field(64, gt=0, description="micro-batches that inputs are measured over")

    @torch.no_grad()
    def apply(self, adapter: Adapter, weight: Tensor, signal: dict[str, Tensor], quantize: Quantizer) -> None:
        moments, W = signal["input_moments"].to(weight.device), weight.float()
        second, mean = moments[:-1], moments[-1]
        shift = dict(adapter.named_parameters()).get("c")
        covariance = second if shift is None else second - mean.outer(mean)
        A, B = adapter.get_parameter("A"), adapter.get_parameter("B")
        U = principal_axes(W, covariance, A.shape[0])
        B.copy_(U)
        A.copy_(U.mT @ W)
        if shift is not None:
            given = W @ mean
            shift.copy_(given - U @ (U.mT @ given))


def principal_axes(weight: Tensor, covariance: Tensor, rank: int) -> Tensor:
    """(out, in), (in, in) -> (out, rank), the leading eigenvectors of W C W^T."""
    values, vectors = torch.linalg.eigh(covariance.double())
    root = (vectors * values.clamp_min(0).sqrt()).float()
    return truncated_svd(weight @ root, rank, niter=None)[0]
