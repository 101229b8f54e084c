"""`Sharded`: a frozen map of which every process keeps a part, so that a base need not fit one device."""

from __future__ import annotations

from math import prod
from typing import ClassVar

import torch
from torch import Tensor, distributed

from lrft.core.adapted import Adapted
from lrft.core.frozen import Absent, FrozenLinear
from lrft.core.less import Less
from lrft.core.team import Team

# torch 2.13 renamed it.
_all_gather = getattr(distributed, "all_gather_single", None) or distributed.all_gather_into_tensor
ALIGNED = 16  # bytes between the beginnings of two tensors: any dtype can be read there


class Sharded(FrozenLinear):
    """A frozen map in any storage, its stored bytes cut into equal parts and gathered wherever the weight is asked for.

    The bytes of all tensors that the storage holds (codes, scales, offsets, or the dense weight), one after another,
    are cut by their number into as many parts as there are processes. `weight` puts them together, lets the inner map
    decode, and keeps nothing: the weight is the one of a process that holds it whole, bit for bit, and exists for the
    time of one matrix product. Every process has to ask for the same maps in the same order, which `Team` checks.

    Args:
        inner: the whole map; it holds nothing afterwards. Its bias stays whole, here.
        team: the processes that keep the parts.
        index: tells this map from the others.
    """

    provides: ClassVar[set[str]] = set()
    part: Tensor

    def __init__(self, inner: FrozenLinear, team: Team, index: int) -> None:
        self.begin_around(inner)
        self.register_buffer("bias", None, persistent=False)
        self.bias, inner.bias = inner.bias, None
        # Whoever looks for the device and precision of a block finds them here: its bytes are of no precision.
        device = next(inner.buffers()).device
        self.register_buffer(
            "nothing", torch.empty(0, dtype=inner.compute_dtype, device=device), persistent=False
        )
        self.inner, self.team, self.index = inner, team, index
        self.layout: dict[str, tuple[int, torch.Size, torch.dtype]] = {}
        self._cut()

    def encode(self, weight: Tensor) -> None:
        """Take `weight` (out, in) as the new weight; every process is given the whole."""
        self.inner.encode(weight)
        self._cut()

    def weight(self) -> Tensor:
        assert self.team.order is not None, "parts are kept by processes that go in step"
        self.team.order.note(self.index)
        whole = self.part.new_empty(self.team.size * self.part.numel())
        _all_gather(whole, self.part)
        for name, (start, shape, dtype) in self.layout.items():
            stored = whole[start : start + prod(shape) * dtype.itemsize]
            setattr(self.inner, name, stored.view(dtype).view(shape))
        try:
            return self.inner.weight()
        finally:
            self._empty()

    @torch.no_grad()
    def _cut(self) -> None:
        """Keep this process's part of what the inner map holds."""
        held = {name: tensor for name, tensor in self.inner.named_buffers(recurse=False) if name != "bias"}
        self.layout, end = {}, 0
        for name, tensor in held.items():
            self.layout[name] = (end, tensor.shape, tensor.dtype)
            end += _up(tensor.numel() * tensor.element_size(), ALIGNED)
        share = _up(end, self.team.size * ALIGNED) // self.team.size
        first = self.team.rank * share
        device = next(iter(held.values())).device
        part = torch.zeros(share, dtype=torch.uint8, device=device)
        for name, tensor in held.items():
            bytes_ = tensor.contiguous().view(-1).view(torch.uint8)
            start = self.layout[name][0]
            low, high = max(start, first), min(start + bytes_.numel(), first + share)
            if low < high:
                part[low - first : high - first] = bytes_[low - start : high - start]
        self.register_buffer("part", part, persistent=False)
        self._empty()

    def _empty(self) -> None:
        for name in self.layout:
            setattr(self.inner, name, None)


def shard(layer: FrozenLinear | Adapted, team: Team, index: int) -> FrozenLinear | Adapted:
    """The layer with its base cut into parts, whatever stands around that.

    Args:
        index: see `Sharded`.
    """
    if isinstance(layer, Adapted):
        layer.base = _sharded(layer.base, team, index)
        return layer
    return _sharded(layer, team, index)


def _sharded(base: FrozenLinear, team: Team, index: int) -> FrozenLinear:
    if isinstance(base, Absent):  # it holds nothing
        return base
    if isinstance(base, Less):
        base.inner = _sharded(base.inner, team, index)
        return base
    return Sharded(base, team, index)


def _up(number: int, multiple: int) -> int:
    """The next multiple."""
    return -(-number // multiple) * multiple
