"""What a forward pass keeps for its backward pass."""

from __future__ import annotations

import weakref
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from unittest.mock import patch

import pytest
import torch

from lrft.build.native import native_kernels
from lrft.model.gguf import cache_root
from lrft.ops.native import Kernels, using


@dataclass(eq=False)
class _Packed:
    """What a node of the graph holds in place of a tensor, and lets go with it."""

    x: torch.Tensor


@contextmanager
def keeping() -> Iterator[dict[int, int]]:
    """Address -> bytes of every storage that is kept at the end.

    The output has to live until then: a branch of the graph that nothing leads to by then keeps nothing.
    """
    held: dict[int, int] = {}
    users: Counter[int] = Counter()
    ends: list[weakref.finalize] = []

    def forget(place: int) -> None:
        users[place] -= 1
        if not users[place]:
            del held[place]

    def keep(x: torch.Tensor) -> _Packed:
        packed, place = _Packed(x), x.untyped_storage().data_ptr()
        held[place] = x.untyped_storage().nbytes()
        users[place] += 1
        ends.append(weakref.finalize(packed, forget, place))
        return packed

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda packed: packed.x):
        yield held
    for end in ends:
        end.detach()


@contextmanager
def computing(with_kernels: bool) -> Iterator[None]:
    """As a run computes, and a plan expects it to, with the kernels of this machine or without."""
    if not with_kernels:
        with patch("lrft.build.trial.has_compiler", lambda: False):
            yield
        return
    found = native_kernels(cache_root().parent / "compiled")
    if not isinstance(found, Kernels):
        pytest.skip(f"no kernels on this machine: {found}")
    with using(found), patch("lrft.build.trial.has_compiler", lambda: True):
        yield
