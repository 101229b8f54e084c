"""The tasks of a library as experts: the nearest of them by what texts say, and their statistics together."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lrft.core.generate import Known, Sizes


class Experts(nn.Module):
    """Mean and variance of the last checkpoints of every task, and where its description stands.

    Args:
        last: checkpoints of a task that count.
        top: experts that are taken together, or all where there are fewer.
        temperature: of the softmax over cosines.
    """

    mean: Tensor
    variance: Tensor
    text: Tensor

    def __init__(self, sizes: Sizes, last: int, top: int, temperature: float) -> None:
        super().__init__()
        self.last, self.top, self.temperature = last, min(top, sizes.tasks), temperature
        self.register_buffer("mean", torch.zeros(sizes.tasks, sizes.layout.size))
        self.register_buffer("variance", torch.zeros(sizes.tasks, sizes.layout.size))
        self.register_buffer("text", torch.zeros(sizes.tasks, *sizes.condition))

    def take(self, known: Sequence[Known]) -> None:
        """From the library; of one checkpoint alone the variance is 0."""
        for place, one in enumerate(known):
            kept = one.samples[-self.last :].double()
            self.mean[place] = kept.mean(0)
            self.variance[place] = kept.var(0, correction=0)
            self.text[place] = one.condition

    def weights(self, text: Tensor) -> Tensor:
        """(d,) -> (tasks,): softmax of cosine / temperature over the `top` nearest, 0 for the others."""
        cosines = F.cosine_similarity(self.text, text[None], dim=1)
        values, places = cosines.topk(self.top)
        return torch.zeros_like(cosines).scatter(0, places, (values / self.temperature).softmax(0))

    def together(self, text: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and variance (L,) of the mixture of the nearest experts, entry by entry."""
        weights = self.weights(text)[:, None]
        mean = (weights * self.mean).sum(0)
        within, between = weights * self.variance, weights * (self.mean - mean).square()
        return mean, within.sum(0) + between.sum(0)
