"""`Siblings`: adapted linear maps that read one and the same tensor, computed together."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from lrft.core.adapted import Adapted, adapted
from lrft.core.adapter import LowRank
from lrft.core.frozen import FrozenLinear
from lrft.ops.branch_matmul import multiply
from lrft.ops.dropout import drop
from lrft.ops.low_rank import Branch


@dataclass
class _Waiting:
    """Products that are made and not yet asked for.

    Attributes:
        x: the input, whose version tells that nothing was written to it since.
        left: place of a sibling -> its product.
    """

    x: Tensor
    version: int
    left: dict[int, Tensor]


class Siblings:
    """The first that is called in training computes for all; the others are handed theirs when they get that tensor.

    Whether that may be is asked in every pass, of every sibling: low-rank terms by the contract's own forward pass, on
    bases that let the adapter through as it is. Else each computes for itself.

    Args:
        sites: in the order in which the model's code calls them.
    """

    def __init__(self, sites: Sequence[Adapted]) -> None:
        self._sites = list(sites)
        self._waiting: _Waiting | None = None

    def __len__(self) -> int:
        return len(self._sites)

    def product(self, site: nn.Module, x: Tensor) -> Tensor | None:
        """The output of one of them without a bias that trains, or None where it has to compute for itself."""
        if not torch.is_grad_enabled() or torch.compiler.is_compiling():
            return None
        place = next(k for k, one in enumerate(self._sites) if one is site)
        if place == 0:
            self._waiting = self._computed(x)
        waiting = self._waiting
        if waiting is None or waiting.x is not x or waiting.version != x._version:
            return None
        y = waiting.left.pop(place, None)
        if not waiting.left:
            self._waiting = None
        return y

    def _computed(self, x: Tensor) -> _Waiting | None:
        branches = [_branch(site, x) for site in self._sites]
        known = [branch for branch in branches if branch is not None]
        if len(known) < len(branches) or len({branch.dropout for branch in known}) > 1:
            return None
        terms = [branch.term(site.base) for site, branch in zip(self._sites, known, strict=True)]
        dropped = drop(x, known[0].dropout) if known[0].dropout > 0 else None
        return _Waiting(x, x._version, dict(enumerate(multiply(x, terms, dropped))))


def _branch(site: Adapted, x: Tensor) -> Branch | None:
    """The term that the site adds to its base, where that is all it does."""
    adapter, base = site.adapter, site.base
    if not (site.enabled and isinstance(adapter, LowRank) and adapter.training):
        return None
    if not adapter.is_branch_alone:
        return None
    if type(base).through is not FrozenLinear.through or adapter.compute_dtype not in (None, x.dtype):
        return None
    if adapter._forward_hooks or adapter._forward_pre_hooks or adapter._backward_hooks:
        return None
    return adapter.branch_on(base)


@contextmanager
def noticing(model: nn.Module) -> Iterator[None]:
    """Make siblings of the sites that one after another are given the same tensor, in a pass through the model."""
    runs: list[list[Adapted]] = []
    last: list[Tensor] = []  # keeps the tensor, or another one may get its place

    def called(site: nn.Module, given: tuple[Tensor, ...]) -> None:
        assert isinstance(site, Adapted)
        if last and given and given[0] is last[0] and site not in runs[-1]:
            runs[-1].append(site)
        else:
            runs.append([site])
        last[:] = given[:1]

    # A block, an adapter around one, or one with several inputs has no siblings.
    plain = [site for _, site in adapted(model) if type(site) is Adapted]
    handles = [site.register_forward_pre_hook(called) for site in plain]
    for site in plain:
        site.siblings = None
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
    times = Counter(id(site) for run in runs for site in run)
    for run in runs:
        if len(run) > 1 and all(times[id(site)] == 1 for site in run):
            group = Siblings(run)
            for site in run:
                site.siblings = group
