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
        self._rows = 0

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
    def of(self, groups: Sequence[Group], rows: int) -> Iterator[None]:
        """While a batch of so many rows is computed: who they are; those of no group get the base's answer."""
        self._groups, self._rows = groups, rows
        try:
            yield
        finally:
            self._groups = ()

    def _add(self, site: str, module: nn.Module, inputs: tuple[Any, ...], y: Tensor) -> Tensor:
        parts = [(loaded.factors[site], rows) for loaded, rows in self._groups if site in loaded.factors]
        x, by_row = self._by_row(site, inputs[0]), self._by_row(site, y)
        for (placed_a, placed_b), rows in parts:
            A, B = self._pages.read(placed_a), self._pages.read(placed_b)
            added = torch.matmul(torch.matmul(x[rows].to(A.dtype), A.T), B)
            by_row[rows] += added.to(
                y.dtype
            )  # a layer's output is its own, and nothing here needs a gradient
        return y

    def _by_row(self, site: str, tokens: Tensor) -> Tensor:
        """(rows, ..., d), a view, also where a family's code gives a layer the tokens of all rows as one (OPT).

        Raises:
            RuntimeError: it is given others.
        """
        if tokens.shape[0] == self._rows:
            return tokens
        if tokens.ndim != 2 or tokens.shape[0] % self._rows:
            raise RuntimeError(
                f"{site} is not given the tokens of every row, so no adapter can be told apart there"
            )
        return tokens.view(self._rows, -1, tokens.shape[-1])
