"""What a forward pass keeps for its backward pass."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def keeping() -> Iterator[dict[int, int]]:
    """Address -> bytes of every storage that is kept meanwhile."""
    held, alive = {}, []

    def keep(x: torch.Tensor) -> torch.Tensor:
        alive.append(x)  # so that no other gets its address
        held[x.untyped_storage().data_ptr()] = x.untyped_storage().nbytes()
        return x

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x):
        yield held
