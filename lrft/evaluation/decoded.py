"""Decode compressed weights once for a generation, instead of once per generated token."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TypeGuard

import torch
from torch import Tensor, nn

from lrft.core.frozen import FrozenLinear
from lrft.core.less import Less
from lrft.core.sharded import Sharded


@contextmanager
def decoded(model: nn.Module, limit_bytes: int | None = None) -> Iterator[int]:
    """Keep the dense weights of compressed layers in memory; yields how many layers are decoded.

    The numbers are the ones the layer would decode itself, so outputs do not change. Layers whose storage is
    already as large as the dense weight are left alone, and so are those beyond the budget: they go on
    decoding at every use. Weights must not be written meanwhile.

    Args:
        limit_bytes: most memory the dense copies may take; by default `spare_bytes`.
    """
    layers = [layer for layer in model.modules() if _stores(layer) and is_compressed(layer)]
    left = spare_bytes(layers) if limit_bytes is None else limit_bytes
    held: list[FrozenLinear] = []
    try:
        for layer in layers:
            if dense_bytes(layer) <= left:
                left -= dense_bytes(layer)
                hold(layer)
                held.append(layer)
        yield len(held)
    finally:
        for layer in held:
            del layer.__dict__["weight"]


def _stores(layer: nn.Module) -> TypeGuard[FrozenLinear]:
    """Whether the layer is a map whose weight is its own, and neither that of one inside nor spread over processes."""
    return (
        isinstance(layer, FrozenLinear) and not isinstance(layer, Less | Sharded) and layer.stored_bytes > 0
    )


def is_compressed(layer: FrozenLinear) -> bool:
    """Whether the storage is smaller than the dense weight, and no copy is held yet."""
    return "weight" not in layer.__dict__ and layer.stored_bytes < dense_bytes(layer)


def dense_bytes(layer: FrozenLinear) -> int:
    """Bytes of the (out, in) weight in the compute dtype."""
    return layer.out_features * layer.in_features * layer.compute_dtype.itemsize


@torch.no_grad()
def hold(layer: FrozenLinear) -> None:
    """Shadow the method with one that returns a copy decoded now."""
    weight = layer.weight()

    def cached() -> Tensor:
        return weight

    layer.__dict__["weight"] = cached


def spare_bytes(layers: list[FrozenLinear]) -> int:
    """Half of what is free on the GPU, or half of the machine: loading took the dense weights there."""
    tensors = (tensor for layer in layers for tensor in layer.buffers())
    device = next((tensor.device for tensor in tensors), torch.device("cpu"))
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0] // 2)
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2
