"""`Products`: the rows of a batch go through different adapters, with one pair of products an adapter and layer.

S-LoRA and Punica gather the factors of every row; here rows of one adapter stand together, so that each product is of
whole slices and what is read of memory is each adapter once (https://arxiv.org/abs/2311.03285, section 5.3).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from lrft.serve.pages import Pages
from lrft.serve.store import Loaded

Group = tuple[Loaded, slice]
"""An adapter, and its rows of the batch."""


class Products:
    """Adds to the layers of a bare base what the adapter of every row adds: y + (x A^T) B^T."""

    def __init__(self, pages: Pages) -> None:
        self._pages = pages
        self._groups: Sequence[Group] = ()

    @contextmanager
    def on(self, modules: Iterable[tuple[str, nn.Module]]) -> Iterator[None]:
        """Listen to these layers, by site."""
        hooks = [module.register_forward_hook(partial(self._add, site)) for site, module in modules]
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()

    @contextmanager
    def of(self, groups: Sequence[Group]) -> Iterator[None]:
        """While a batch is computed: who its rows are; those of no group get the base's answer."""
        self._groups = groups
        try:
            yield
        finally:
            self._groups = ()

    def _add(self, site: str, module: nn.Module, inputs: tuple[Any, ...], y: Tensor) -> Tensor:
        x = inputs[0]
        parts = [(loaded.factors[site], rows) for loaded, rows in self._groups if site in loaded.factors]
        for (placed_a, placed_b), rows in parts:
            A, B = self._pages.read(placed_a), self._pages.read(placed_b)
            added = torch.matmul(torch.matmul(x[rows].to(A.dtype), A.T), B)
            y[rows] += added.to(y.dtype)  # a layer's output is its own, and nothing here needs a gradient
        return y
