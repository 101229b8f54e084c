"""Entries of which a share of the weight trains, or a number that an init of the method deals out."""

from __future__ import annotations

from typing import Any

from lrft.core.entries import Entries, budget
from lrft.core.params import Site
from lrft.registry.config import Field, PlacedConfig


class ShareOfEntries(Entries):
    """k = `entries` or, without it, `share` of the entries of W, rounded, one at the least."""

    class Config(PlacedConfig):
        share: float = Field(0.01, gt=0, le=1, description="share of the entries that train")
        entries: int | None = Field(
            None, gt=0, description="entries of every matrix that train, instead of the share"
        )

    @staticmethod
    def count(config: Any, site: Site) -> int:
        return int(config.entries or budget(config.share, site.in_features * site.out_features))
