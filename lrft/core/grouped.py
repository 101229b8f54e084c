"""`Grouped`: layers of one shape, each given its own rows of one tensor, computed as one product of groups."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lrft.core.adapted import Adapted
from lrft.core.adapter import LowRank
from lrft.core.frozen import FrozenLinear
from lrft.ops.by_expert import ByExpert
from lrft.ops.dense_matmul import grouped_linear
from lrft.ops.low_rank import Branch

ALIGNED = 16  # bytes that the rows of what torch multiplies in groups are a multiple of
CAPABLE = (8, 0)  # compute capability from which on a GPU does


class Grouped:
    """y = x W_e^T + s (x A_e^T) B_e^T + b_e for the rows of every layer e, in three products for all layers.

    Dense weights are parts of one tensor from then on. Whether one product may stand for all is asked in every pass, of
    every layer: bases as they were, with low-rank terms by the contract's own forward pass or none, and nobody who
    listens to a single layer.

    Args:
        layers: of one shape, on bases that are `movable`.
    """

    def __init__(self, layers: Sequence[nn.Module]) -> None:
        self.layers = list(layers)
        self.bases = [_base(layer) for layer in layers]
        self.weight = _moved_together(self.bases)
        biases = [base.bias for base in self.bases if base.bias is not None]
        self.bias = torch.stack(biases) if len(biases) == len(self.bases) else None

    @classmethod
    def of(cls, layers: Sequence[nn.Module]) -> Grouped | None:
        """None where a layer is stored in another way than as it is multiplied, or the sizes do not allow it."""
        bases = [
            layer.base if isinstance(layer, Adapted) else layer
            for layer in layers
            if isinstance(layer, Adapted | FrozenLinear)
        ]
        known = [base for base in bases if isinstance(base, FrozenLinear) and base.movable]
        if len(known) < len(layers) or not hasattr(F, "grouped_mm"):
            return None
        first = known[0]
        sizes = (first.in_features, first.out_features)
        aligned = all(size * first.compute_dtype.itemsize % ALIGNED == 0 for size in sizes)
        return cls(layers) if aligned and len({base.bias is None for base in known}) == 1 else None

    def product(self, x: Tensor, by: ByExpert) -> Tensor | None:
        """The rows x (rows, in), sorted by expert -> (rows, out); None where each layer has to compute alone."""
        if x.dtype != self.weight.dtype or not _capable(x.device):
            return None
        branches: list[Branch | None] = []
        met = [place for place, count in enumerate(by.counts) if count]  # what got no row gets no gradient
        for layer, base in ((self.layers[place], self.bases[place]) for place in met):
            if not _as_it_was(layer, base):
                return None
            branch = None
            if isinstance(layer, Adapted) and layer.enabled and (branch := _branch(layer, x)) is None:
                return None
            branches.append(branch)
        if len({branch.dropout for branch in branches if branch is not None}) > 1:
            return None
        every = range(len(by.counts))
        ends = by.ends(every, x.device)
        y = grouped_linear(x, self.weight, ends)
        if any(branch is not None for branch in branches):
            y = y + self._term(x, branches, by.ends(met, x.device))
        return y if self.bias is None else y + self.bias.index_select(0, by.experts)

    def _term(self, x: Tensor, branches: Sequence[Branch | None], ends: Tensor) -> Tensor:
        """What the branches add; those of fewer components than another have zeros beside them."""
        there = [branch for branch in branches if branch is not None]
        step = ALIGNED // x.dtype.itemsize
        rank = -(-max(branch.pair()[0].shape[0] for branch in there) // step) * step
        down, up = (
            torch.stack(part).to(x.dtype) for part in zip(*self._factors(branches, rank), strict=True)
        )
        training = any(layer.adapter.training for layer in self.layers if isinstance(layer, Adapted))
        seen = F.dropout(x, there[0].dropout, training)
        return grouped_linear(grouped_linear(seen, down, ends), up, ends)

    def _factors(self, branches: Sequence[Branch | None], rank: int) -> Iterator[tuple[Tensor, Tensor]]:
        """A (rank, in) and s B (out, rank) of every layer, in float32."""
        _, out, into = self.weight.shape
        for branch in branches:
            if branch is None:
                zeros = self.weight.new_zeros((), dtype=torch.float32)
                yield zeros.expand(rank, into), zeros.expand(out, rank)
                continue
            down, up = branch.pair()
            more = rank - down.shape[0]
            yield F.pad(down, (0, 0, 0, more)), F.pad(branch.scale * up, (0, more))


def _base(layer: nn.Module) -> FrozenLinear:
    base = layer.base if isinstance(layer, Adapted) else layer
    assert isinstance(base, FrozenLinear), "asked before"
    return base


def _moved_together(bases: Sequence[FrozenLinear]) -> Tensor:
    """Their weights as one tensor (layers, out, in), of which each keeps its part; no copy of what is one already."""
    weights = [base.weight() for base in bases]
    first, size = weights[0], weights[0].nbytes
    whole = first.untyped_storage().data_ptr()
    if all(
        weight.data_ptr() == first.data_ptr() + place * size
        and weight.untyped_storage().data_ptr() == whole
        and weight.is_contiguous()
        for place, weight in enumerate(weights)
    ):
        shape = (len(weights), *first.shape)
        return first.as_strided(shape, (first.numel(), *first.stride()), first.storage_offset())
    stack = torch.empty(len(weights), *first.shape, dtype=first.dtype, device=first.device)
    for base, place in zip(bases, stack, strict=True):
        base.move_to(place)
    return stack


def _as_it_was(layer: nn.Module, base: FrozenLinear) -> bool:
    """Whether the layer is still on the base that was moved, computes by itself, and nobody listens to either."""
    now = layer.base if isinstance(layer, Adapted) else layer
    if now is not base or base.edited or (isinstance(layer, Adapted) and layer.bias is not None):
        return False
    listened = (layer, base, layer.adapter) if isinstance(layer, Adapted) else (layer,)
    return not any(
        one._forward_hooks or one._forward_pre_hooks or one._backward_hooks or "forward" in vars(one)
        for one in listened
    )


def _branch(site: Adapted, x: Tensor) -> Branch | None:
    """The term that the site adds to its base, where that is all it does."""
    adapter = site.adapter
    if site.siblings is not None or not isinstance(adapter, LowRank):
        return None
    if not adapter.is_branch_alone:
        return None
    if adapter.compute_dtype not in (None, x.dtype):
        return None
    branch = adapter.branch_on(site.base)
    return branch if branch.gain is None and branch.formed is None else None


def _capable(device: torch.device) -> bool:
    return device.type in ("cpu", "meta") or (
        device.type == "cuda" and torch.cuda.get_device_capability(device) >= CAPABLE
    )
