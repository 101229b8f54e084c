"""Tensors that are made again, in the backward pass, of others that are kept anyway, and not kept beside them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lrft.ops.dropout import clear


@dataclass(frozen=True)
class Made:
    """How one tensor is made again.

    Attributes:
        again: function of `of`, without a graph.
        of: what the node that made it keeps anyway.
        version: of the tensor when it was made: what was written to it since is not made again.
    """

    again: Callable[..., Tensor]
    of: tuple[Tensor, ...]
    version: int


def note_on(y: Tensor, again: Callable[..., Tensor], *of: Tensor) -> None:
    """Note on y that it is `again(*of)`, where its own node keeps those: one without a graph keeps nothing."""
    if y.requires_grad and not torch.compiler.is_compiling():
        y._made_of = Made(again, of, y._version)  # type: ignore[attr-defined]


def made_of(x: Tensor) -> Made | None:
    """How x is made again; None where nothing is noted, or it was written to since."""
    made: Made | None = getattr(x, "_made_of", None)
    return made if made is not None and made.version == x._version else None


def make_again(again: Callable[..., Tensor], of: Sequence[Tensor], zeros: Tensor | None = None) -> Tensor:
    """The tensor as (tokens, in), without what was dropped of it (`lrft.ops.dropout.Dropped.zeros`)."""
    made = again(*of)
    flat = made.reshape(-1, made.shape[-1])
    return flat if zeros is None else clear(flat, zeros)
