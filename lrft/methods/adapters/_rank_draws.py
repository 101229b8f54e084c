"""Neural low-rank adapter search: another prefix of the rank components in every step, the same within a layer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, cast

import torch

from lrft.core.callback import TimedMethod
from lrft.core.in_layer import layer_of
from lrft.core.run import Run


class Searched(Protocol):
    """The settings of an adapter whose ranks are drawn."""

    rank: int
    ranks: list[int] | None


class Prefixed(Protocol):
    """An adapter of which the leading `live` components are in use."""

    live: int
    config: Searched


class RankDraws(TimedMethod):
    """Sets `live` of every adapter before a step, and the sub-adapter's after it."""

    def before_step(self, run: Run) -> None:
        drawn: dict[str, int] = {}
        for name, site in run.adapted():
            part = cast(Prefixed, site.adapter)
            ranks = in_order(part.config.ranks or [])
            layer = layer_of(name)
            if layer not in drawn:
                drawn[layer] = int(torch.randint(len(ranks), (), generator=run.generator))
            part.live = ranks[drawn[layer]]

    def after_step(self, run: Run) -> None:
        for _, site in run.adapted():
            part = cast(Prefixed, site.adapter)
            part.live = sub_rank(part.config.ranks or [])


def in_order(ranks: Sequence[int]) -> list[int]:
    """The largest first."""
    return sorted(ranks, reverse=True)


def sub_rank(ranks: Sequence[int]) -> int:
    """The rank of the sub-adapter: the middle one, the larger of two."""
    return in_order(ranks)[(len(ranks) - 1) // 2]
