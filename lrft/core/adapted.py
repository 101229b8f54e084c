"""`Adapted`: a frozen map with an adapter on it. Written once, for every method and every storage."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from lrft.core.adapter import Adapter
from lrft.core.frozen import FrozenLinear


class Adapted(nn.Module):
    """What replaces a linear layer of the base model: `adapter(x, base)`, or the pretrained map while disabled.

    Args:
        start: a frozen copy of the adapter at step 0, when its start is a change that the base gave up.
        anchored: the base kept its weight W and the start is subtracted here; otherwise the base stores
            W - delta_0 and the start only remembers what is missing.
    """

    def __init__(
        self, base: FrozenLinear, adapter: Adapter, start: Adapter | None = None, anchored: bool = False
    ) -> None:
        super().__init__()
        self.base = base
        self.adapter = adapter
        self.start = None if start is None else start.requires_grad_(False).eval()
        self.anchored = anchored
        self.enabled = True

    def forward(self, x: Tensor) -> Tensor:
        """(..., in) -> (..., out)."""
        if not self.enabled:
            # The pretrained model, not its residual: references and baselines must not miss what the base gave up.
            return (
                self.base(x) if self.start is None or self.anchored else self.base(x) + self.start.update(x)
            )
        if self.start is not None and self.anchored:
            return self.adapter.forward_since(self.start, x, self.base)
        return self.adapter(x, self.base)

    def train(self, mode: bool = True) -> Adapted:
        """The start stays in evaluation mode: it is a constant."""
        super().train(mode)
        if self.start is not None:
            self.start.eval()
        return self

    @torch.no_grad()
    def merged_weight(self, weight: Tensor | None = None) -> Tensor:
        """W + delta(W), less the start where W still holds it, in float32, (out, in).

        Args:
            weight: the dense pretrained weight to merge onto; by default the base as trained against (decoded).

        Raises:
            NotMergeable: the method is not a change of the weight.
        """
        dense = (self.base.weight() if weight is None else weight).float()
        merged = dense + self.adapter.delta_weight(dense)
        whole = weight is not None or self.anchored
        return merged - self.start.delta_weight(dense) if self.start is not None and whole else merged

    @torch.no_grad()
    def pretrained_weight(self) -> Tensor:
        """The weight before any training, as this base stores it, in float32, (out, in)."""
        dense = self.base.weight().float()
        return dense if self.start is None or self.anchored else dense + self.start.delta_weight(dense)

    @torch.no_grad()
    def fold(self) -> None:
        """Write W + delta(W) into the base, re-encoded in its storage, and reset the adapter."""
        self.base.write(self.merged_weight())
        self.start = None
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
