"""A frozen head of which a few rows stand for themselves, and train: its logits and their gradients, in chunks."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from lrft.ops.products import working

WIDENED = 2**22  # numbers of a weight that are widened at a time


@dataclass(frozen=True)
class FrozenHead:
    """The weight (V, d) and the bias of a frozen head, and k rows (k, d) in their dtype that stand in for some.

    Attributes:
        first: of the rows that they stand in for, or the place (k,) of each.
        scores: (N, k) float32, filled with the gradient of every loss with respect to the logits of those rows.
        room: (n, d), where n rows of the weight are widened at a time, if they are; made once, since the pages of a
            tensor of its size take longer to come by than the numbers in it.
    """

    weight: Tensor
    bias: Tensor | None
    rows: Tensor | None
    first: int | Tensor
    scores: Tensor | None
    room: Tensor

    @staticmethod
    def of(
        hidden: Tensor, rows: Tensor | None, weight: Tensor, bias: Tensor | None, first: int | Tensor
    ) -> FrozenHead:
        """For hidden states (N, d); rows (k, d) in any precision."""
        at_a_time = 0 if working(hidden) == hidden.dtype else max(1, WIDENED // weight.shape[1])
        room = weight.new_empty(min(at_a_time, len(weight)), weight.shape[1], dtype=working(hidden))
        if rows is None:
            return FrozenHead(weight, bias, None, 0, None, room)
        scores = torch.empty(hidden.shape[0], rows.shape[0], dtype=torch.float32, device=hidden.device)
        return FrozenHead(weight, bias, rows.to(hidden.device, hidden.dtype), first, scores, room)

    def logits(self, hidden: Tensor, out: Tensor) -> Tensor:
        """(n, d) -> (n, V), written to `out`, whose precision they are computed in."""
        if out.dtype == self.weight.dtype:
            logits = torch.mm(hidden, self.weight.mT, out=out)
        else:
            logits, wide = out, hidden.to(out.dtype)
            for part, weight in self._widened():
                torch.mm(wide, weight.mT, out=logits[:, part])
        if self.rows is not None:
            logits[:, self.columns] = (hidden @ self.rows.mT).to(out.dtype)
        return logits if self.bias is None else logits.add_(self.bias)

    def pull(self, gradient: Tensor, scores: Tensor, start: int, out: Tensor) -> None:
        """Write the gradient of a chunk's hidden states (n, d) to `out`; keep that of the logits of the rows.

        Args:
            gradient: (n, V) in the hidden states' dtype or as `scores`, used up.
            scores: the same in float32.
            start: place of the chunk among all rows.
        """
        if self.rows is None or self.scores is None:
            out.copy_(self._pulled(gradient))
            return
        self.scores[start : start + scores.shape[0]] = scores[:, self.columns]
        own = gradient[:, self.columns].to(self.rows.dtype) @ self.rows
        gradient[:, self.columns] = 0
        out.copy_(self._pulled(gradient)).add_(own)

    def _pulled(self, gradient: Tensor) -> Tensor:
        if gradient.dtype == self.weight.dtype:
            return gradient @ self.weight
        found = gradient.new_zeros(gradient.shape[0], self.weight.shape[1])
        for part, weight in self._widened():
            found.addmm_(gradient[:, part], weight)
        return found

    def _widened(self) -> Iterator[tuple[slice, Tensor]]:
        """Rows of the weight, one `room` after another: all of a large vocabulary take more than the logits."""
        for start in range(0, len(self.weight), len(self.room)):
            part = slice(start, min(start + len(self.room), len(self.weight)))
            yield part, self.room[: part.stop - start].copy_(self.weight[part])

    @property
    def columns(self) -> slice | Tensor:
        """Where the rows stand among the logits."""
        assert self.rows is not None, "a head without rows of their own has no place for them"
        if isinstance(self.first, Tensor):
            return self.first
        return slice(self.first, self.first + self.rows.shape[0])

    def kept(self, hidden: Tensor) -> tuple[Tensor, ...]:
        """What the gradient of the rows is made of, in the backward pass."""
        return () if self.scores is None else (self.scores, hidden)


def rows_gradient(kept: tuple[Tensor, ...], by: Tensor, scale: float) -> Tensor | None:
    """The gradient of the rows (k, d) in float32; `by` is that of the losses, one for all or (N, 1)."""
    if not kept:
        return None
    scores, hidden = kept
    return (scores * (by * scale)).mT @ hidden.float()
