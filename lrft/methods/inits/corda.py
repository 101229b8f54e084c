"""CorDA: decompose the weight in the light of the inputs it meets."""

from __future__ import annotations

import torch
from torch import Tensor

from lrft.core.adapter import Adapter
from lrft.core.frozen import Quantizer
from lrft.core.stages import Init
from lrft.registry.axes import INITS
from lrft.registry.config import Field, Literal, ResidualConfig, Source

DAMPING, TOLERANCE = 0.01, 0.05


@INITS.register
class CorDA(Init):
    """Context-oriented decomposition adaptation: the weight is decomposed in the light of the inputs that it meets.

        C  = mean over micro-batches of X^T X
        C' = C + d mean(diag C) I
        W C' = U S V^T,  H = V^T C'^-1,  so W = U S H
        B  = U_k sqrt(S_k / s),  A = sqrt(S_k / s) H_k
        base: W - s B A

    with X (tokens, in) the site's inputs in a micro-batch, divided by the absolute value of their largest signed entry;
    d = 0.01, doubled until ||C' C'^-1 - I||_F < 0.05; r the rank, s the adapter's scale. k are the r components taken:
    the first with `mode: ipm` (instruction-previewed: trains what the inputs excite most), the last of the min(out, in)
    with `mode: kpm` (knowledge-preserved: trains what they excite least). C is measured over `batches` micro-batches of
    the training rows, or of the rows in `data`. With `residual: rewrite` the base stores W - s B A; with
    `residual: anchor` it keeps W and the frozen start is subtracted beside it.

    Shapes: C (in, in), U (out, min(out, in)), H (min(out, in), in), A (r, in), B (out, r). W' = W at step 0 up to
    rounding.
    Trains: what the adapter trains. The base gives up s B A.
    Source: Yang et al., "CorDA", NeurIPS 2024, arXiv 2406.05223, and the authors' code (256 samples of 2048 tokens).
    Departures: X is a micro-batch, padding left out (the authors' code has one sample a batch), and C is divided by
    their real number, as in PEFT, where the authors' code divides by 256; on quantized bases the default is
    `residual: anchor`.
    Advice: for `mode: ipm` the inputs should come from the task, which the training rows do; for `mode: kpm` they
    should be questions about what is to be kept: give those as `data`.
    """

    aliases = {
        "corda_kpm": "init: corda",
    }
    requires = {"low_rank", "linear_delta", "undropped"}
    residual = True
    directions = 1

    config: Config

    class Config(ResidualConfig):
        mode: Literal["ipm", "kpm"] = Field(
            "ipm", description="ipm: learn the task fastest; kpm: keep what the model knows about `data`"
        )
        data: Source | None = Field(
            None, description="rows that C is measured over, in data.format; by default the training rows"
        )
        batches: int = Field(256, gt=0, description="micro-batches that C is measured over")

    @property
    def needs(self) -> tuple[str, ...]:  # type: ignore[override]
        """The covariance of the training rows' inputs, or of those in `data`."""
        return ("input_cov",) if self.config.data is None else ("input_cov@data",)

    def sources(self) -> dict[str, Source]:
        return {} if self.config.data is None else {"data": self.config.data}

    @torch.no_grad()
    def apply(self, adapter: Adapter, weight: Tensor, signal: dict[str, Tensor], quantize: Quantizer) -> None:
        A, B = adapter.get_parameter("A"), adapter.get_parameter("B")
        r, most = A.shape[0], min(weight.shape)
        if r > most:
            raise ValueError(f"{tuple(weight.shape)} has {most} components, fewer than rank {r}")
        U, S, H = decompose(weight.float(), signal[self.needs[0]].to(weight.device))
        taken = slice(0, r) if self.config.mode == "ipm" else slice(most - r, most)
        root = (S[taken] / adapter.scaling).sqrt()
        A.copy_(root[:, None] * H[taken])
        B.copy_(U[:, taken] * root)


def decompose(weight: Tensor, covariance: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """U (out, k), S (k) falling and H (k, in) with weight (out, in) = U S H, k = min(out, in).

    Raises:
        ValueError: the covariance is not finite, or zero.
    """
    damped, inverse = _damped(covariance.to(weight.dtype))
    U, S, Vh = torch.linalg.svd(weight @ damped, full_matrices=False)
    return U, S, Vh @ inverse


def _damped(covariance: Tensor) -> tuple[Tensor, Tensor]:
    """C' and its inverse, both (in, in)."""
    identity = torch.eye(covariance.shape[0], dtype=covariance.dtype, device=covariance.device)
    level = covariance.diagonal().mean()
    if not covariance.isfinite().all() or level <= 0:
        raise ValueError("the covariance of the calibration inputs is not finite or zero")
    damping = DAMPING
    while True:
        damped = covariance + damping * level * identity
        inverse = torch.linalg.inv(damped)
        if torch.dist(damped @ inverse, identity) < TOLERANCE:
            return damped, inverse
        damping *= 2
