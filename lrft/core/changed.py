"""`Changed`: a frozen map with what was folded into it kept exactly beside."""

from __future__ import annotations

import torch
from torch import Tensor

from lrft.core.frozen import FrozenLinear

PARTS = ("A", "B", "D", "b")


class Changed(FrozenLinear):
    """A frozen map and an exact change of it kept beside, so that what was trained is never rounded into a format.

    W + B A while the factors A (k, in) and B (out, k) hold fewer numbers than the weight, W + D with a dense
    D (out, in) from then on; all in float32, as is b (out,), what the bias changed by. The sum is rounded to the
    compute dtype only where it is used.

    Args:
        inner: the map as it was before.
    """

    A: Tensor | None
    B: Tensor | None
    D: Tensor | None
    b: Tensor | None

    def __init__(self, inner: FrozenLinear) -> None:
        self.begin_around(inner)
        self.inner = inner
        for name in PARTS:
            self.register_buffer(name, None)

    @property
    def bias(self) -> Tensor | None:  # type: ignore[override]
        """The inner map's bias and its change."""
        if self.b is None:
            return self.inner.bias
        return (self.b if self.inner.bias is None else self.inner.bias + self.b).to(self.compute_dtype)

    @property
    def original(self) -> FrozenLinear:
        return self.inner.original

    def pretrained(self, x: Tensor) -> Tensor:
        return self.inner.pretrained(x)

    def pretrained_weight(self) -> Tensor:
        return self.inner.pretrained_weight()

    def encode(self, weight: Tensor) -> None:
        """Take `weight` as the new weight; what differs from the inner map becomes the dense change."""
        self.set_change(D=weight.float() - self.inner.weight().float())

    def weight(self) -> Tensor:
        return (self.inner.weight().float() + self.change()).to(self.compute_dtype)

    def change(self) -> Tensor:
        if self.D is not None:
            return self.D
        assert self.A is not None and self.B is not None, "the change was never set"
        return self.B @ self.A

    @torch.no_grad()
    def add(self, change: Tensor | tuple[Tensor, Tensor]) -> None:
        """Add a dense (out, in) change, or factors A (k, in) and B (out, k) of one."""
        if isinstance(change, tuple) and self.D is None:
            A, B = (part.detach().float() for part in change)
            if self.A is not None and self.B is not None:
                A, B = torch.cat([self.A, A]), torch.cat([self.B, B], dim=1)
            if A.numel() + B.numel() <= self.out_features * self.in_features:
                return self.set_change(A=A, B=B)
        dense = change[1].float() @ change[0].float() if isinstance(change, tuple) else change.float()
        known = self.D is not None or self.A is not None
        return self.set_change(D=self.change() + dense if known else dense.clone())

    def add_bias(self, change: Tensor) -> None:
        """Add a change (out,) of the bias; what it has is known from then on."""
        self.register_buffer("b", change.float() if self.b is None else self.b + change.float())

    def parts(self) -> dict[str, Tensor]:
        """What is kept beside the inner map, by name."""
        found = {name: getattr(self, name) for name in PARTS}
        return {name: tensor for name, tensor in found.items() if tensor is not None}

    def set_change(self, **tensors: Tensor) -> None:
        """Set A and B, or D, and b where it is given, to copies: an adapter's factors move on."""
        for name in PARTS:
            given = tensors.get(name)
            if given is not None or name != "b":
                self.register_buffer(name, None if given is None else given.detach().clone())

    @property
    def stored_bytes(self) -> int:
        return self.inner.stored_bytes + sum(t.numel() * t.element_size() for t in self.parts().values())
