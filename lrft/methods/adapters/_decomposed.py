"""Weight decomposition: a trained magnitude of every output beside a direction that a low-rank term changes."""

from __future__ import annotations

from dataclasses import replace
from typing import Self

import torch
from torch import Tensor, nn

from lrft.core.adapter import Branch, LowRank
from lrft.core.frozen import FrozenLinear

TINY = 1e-12  # a dead row of W has norm 0 and magnitude 0; its scale is then 0 instead of 0/0


class Decomposed(LowRank):
    """W' = g * V with V = W + the change of `branch`, n = row norms of V held constant in the backward pass, g = m / n.

    A subclass stands before the method whose branch it takes, and calls `decompose` when that is made.
    """

    m: nn.Parameter
    row_squares: Tensor

    def decompose(self) -> None:
        """Make the magnitudes (out), which `start` sets to the norms of V."""
        self.m = nn.Parameter(torch.ones(self.site.out_features))
        self.register_buffer("row_squares", torch.zeros(self.site.out_features), persistent=False)
        self._norms: tuple[tuple[int, ...], Tensor] | None = None

    @torch.no_grad()
    def start(self, weight: Tensor) -> None:
        dense = weight.float()
        self.row_squares = dense.square().sum(dim=1)
        self.m.copy_((dense + self.change()).norm(dim=1))

    def delta_weight(self, weight: Tensor) -> Tensor:
        """The change g * V - W, its norm detached as in training, so that its derivatives are those of training."""
        direction = weight.float() + self.change()
        norms: Tensor = direction.norm(dim=1)
        scale = self.m / norms.clamp_min(TINY).detach()
        return (scale[:, None] * direction - weight).to(weight.dtype)

    def branch_on(self, base: FrozenLinear) -> Branch:
        return replace(self.branch(), gain=self.m, norms=self.norms)

    @torch.no_grad()
    def norms(self, weight: Tensor, own: bool = True) -> Tensor:
        """Row norms of V for the W (out, in) in use, (out,) float32, kept between forwards while evaluating.

        Args:
            own: the precision of `weight` is that of W, and it was not widened to it.
        """
        versions = tuple(parameter._version for parameter in self.parameters())
        if not self.training and self._norms is not None and self._norms[0] == versions:
            return self._norms[1]
        exact = own and weight.dtype == torch.float32
        norms = self._direct(weight) if exact else self._expanded(weight)
        if not self.training:
            self._norms = versions, norms
        return norms

    def _direct(self, weight: Tensor) -> Tensor:
        """In float32 the very sum that merging forms: thirty layers turn its last bit into 1e-3 of a logit."""
        norms: Tensor = (weight + self.change()).norm(dim=1)
        return norms.clamp_min(TINY)

    def _expanded(self, weight: Tensor) -> Tensor:
        """The square of a sum without the sum: |w_i|^2 + 2 s b_i . (A w_i) + s^2 b_i (A A^T) b_i^T."""
        A, B = self.branch().pair()
        projected = (weight @ A.to(weight.dtype).mT).float()  # (out, r): row i is A w_i
        # 2 A w_i + s (A A^T) b_i, which meets b_i
        meeting = torch.addmm(projected, B, self.gram(A), beta=2, alpha=self.scaling)
        squares = torch.add(self.row_squares, (B * meeting).sum(dim=1), alpha=self.scaling)
        return squares.clamp_min(TINY**2).sqrt()

    def gram(self, A: Tensor) -> Tensor:
        """A A^T (r, r); of a frozen A a subclass may keep it."""
        return A @ A.mT

    def train(self, mode: bool = True) -> Self:
        self._norms = None  # an optimizer may write through raw pointers, which no version counter sees
        return super().train(mode)
