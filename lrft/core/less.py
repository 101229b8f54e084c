"""`Less`: a base that gave up the start of its adapter, so that the model at step 0 is the pretrained one."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor, nn

from lrft.core.adapter import Additive, Factors
from lrft.core.adapter_map import AdapterMap
from lrft.core.changed import Changed
from lrft.core.frozen import FrozenLinear


class Less(FrozenLinear):
    """W less delta_0, the change that the adapter starts with.

    Either `inner` stores what is left (W - delta_0, rounded anew), and the start only remembers what is missing; or it
    is anchored: `inner` keeps W, and the start is subtracted beside it.

    Args:
        inner: the map as it is stored.
        start: a frozen copy of the adapter at step 0.
        anchored: see above.
        offset: A (k, in) and B (out, k) of what was taken off W before it was stored, where that is not the start
            itself (joint decompositions end with the adapter, so their base was stored against the factors before).
    """

    provides: ClassVar[set[str]] = set()

    def __init__(
        self, inner: FrozenLinear, start: Additive, anchored: bool = False, offset: Factors | None = None
    ) -> None:
        self.begin_around(inner)
        self.inner = inner
        self.start: Additive = start.requires_grad_(False).eval()
        self.anchored = anchored
        self.offset = offset

    @property
    def bias(self) -> Tensor | None:  # type: ignore[override]
        """The inner map's bias."""
        return self.inner.bias

    @property
    def original(self) -> FrozenLinear:
        return self.inner.original

    def weight(self) -> Tensor:
        """What the adapter's change is added to: W where it is anchored, else what is left of it."""
        return self.inner.weight()

    def pretrained(self, x: Tensor) -> Tensor:
        return self.inner(x) if self.anchored else self.inner(x) + self.start.update(x)

    def pretrained_weight(self) -> Tensor:
        dense = self.inner.weight().float()
        return dense if self.anchored else dense + self.start.delta_weight(dense)

    def through(self, adapter: AdapterMap, x: Tensor) -> Tensor:
        if not self.anchored:
            return adapter(x, self.inner)
        assert isinstance(adapter, Additive), "a start is subtracted from additive changes alone"
        return adapter.forward_since(self.start, x, self.inner)

    def train(self, mode: bool = True) -> Less:
        """The start stays in evaluation mode: it is a constant."""
        super().train(mode)
        self.start.eval()
        return self

    @property
    def stored_bytes(self) -> int:
        return self.inner.stored_bytes


def start_of(base: nn.Module) -> Less | None:
    """The start that a base gave up, also where restarts have changed that base since."""
    if isinstance(base, Changed):
        base = base.inner
    return base if isinstance(base, Less) else None


@torch.no_grad()
def changed(base: FrozenLinear) -> Changed:
    """The base as one that changes can be moved into; an anchored start has to be among them, and is forgotten."""
    if isinstance(base, Changed):
        return base
    return Changed(base.inner if isinstance(base, Less) and base.anchored else base)
