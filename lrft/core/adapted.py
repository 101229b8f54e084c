"""`Adapted`: a frozen map with an adapter on it. Written once, for every method and every storage."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from lrft.core.adapter import Adapter
from lrft.core.frozen import FrozenLinear


class Adapted(nn.Module):
    """What replaces a linear layer of the base model: `adapter(x, base)`, or `base(x)` while disabled."""

    def __init__(self, base: FrozenLinear, adapter: Adapter) -> None:
        super().__init__()
        self.base = base
        self.adapter = adapter
        self.enabled = True

    def forward(self, x: Tensor) -> Tensor:
        """(..., in) -> (..., out)."""
        return self.adapter(x, self.base) if self.enabled else self.base(x)

    @torch.no_grad()
    def merged_weight(self, weight: Tensor | None = None) -> Tensor:
        """W + delta(W) in float32, (out, in).

        Args:
            weight: the dense weight to merge onto; by default the base as trained against (decoded storage).

        Raises:
            NotMergeable: the method is not a change of the weight.
        """
        dense = (self.base.weight() if weight is None else weight).float()
        return dense + self.adapter.delta_weight(dense)

    @torch.no_grad()
    def fold(self) -> None:
        """Write W + delta(W) into the base, re-encoded in its storage, and reset the adapter."""
        self.base.write(self.merged_weight())
        self.adapter.reset()
        self.adapter.start(self.base.weight())


def adapted(model: nn.Module) -> Iterator[tuple[str, Adapted]]:
    """Every adapted site of a model with its module path."""
    for name, module in model.named_modules():
        if isinstance(module, Adapted):
            yield name, module


@contextmanager
def adapters_off(model: nn.Module) -> Iterator[None]:
    """The bare base model, for reference log-probabilities and baselines."""
    sites = [site for _, site in adapted(model) if site.enabled]
    for site in sites:
        site.enabled = False
    try:
        yield
    finally:
        for site in sites:
            site.enabled = True
