"""Mean and deviation of every factor over a library, and adapters in these units."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from lrft.core.generate import Known, Layout


class Units(nn.Module):
    """x = (v - mean) / deviation, with one mean and one deviation for each factor of the layout.

    Args:
        layout: of the vectors.
    """

    mean: Tensor
    deviation: Tensor

    def __init__(self, layout: Layout) -> None:
        super().__init__()
        self.lengths = layout.lengths
        self.register_buffer("mean", torch.zeros(len(self.lengths)))
        self.register_buffer("deviation", torch.ones(len(self.lengths)))

    def take(self, known: Sequence[Known]) -> None:
        """Those of all samples together; a factor of one value alone keeps its unit."""
        parts = torch.cat([one.samples for one in known]).double().split(self.lengths, dim=1)
        found = torch.stack([part.std(correction=0) for part in parts])
        self.mean.copy_(torch.stack([part.mean() for part in parts]))
        self.deviation.copy_(torch.where(found > 0, found, 1.0))

    def normalise(self, vectors: Tensor) -> Tensor:
        """(..., size) -> (..., size)."""
        return (vectors - self._spread(self.mean)) / self._spread(self.deviation)

    def restore(self, vectors: Tensor) -> Tensor:
        """The inverse of `normalise`."""
        return vectors * self._spread(self.deviation) + self._spread(self.mean)

    def scale(self, variances: Tensor) -> Tensor:
        """Variances (..., size) of vectors, as variances in these units."""
        return variances / self._spread(self.deviation).square()

    def _spread(self, values: Tensor) -> Tensor:
        lengths = torch.tensor(self.lengths, device=values.device)
        return values.repeat_interleave(lengths)


def divergence(mean: Tensor, log_variance: Tensor, to_mean: Tensor, to_log_variance: Tensor) -> Tensor:
    """KL(N(mean, e^log_variance) || N(to_mean, e^to_log_variance)) of diagonal Gaussians, (B, k) -> (B,) nats."""
    moved = (mean - to_mean).square() / to_log_variance.exp()
    apart = log_variance - to_log_variance
    return 0.5 * (apart.exp() + moved - 1 - apart).sum(1)


def sampled(mean: Tensor, log_variance: Tensor, draws: torch.Generator) -> Tensor:
    """A draw of N(mean, e^log_variance), by which the gradient of both goes: mean + sigma * noise."""
    noise = torch.randn(mean.shape, generator=draws).to(mean.device)
    return mean + (0.5 * log_variance).exp() * noise
