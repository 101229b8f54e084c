"""SPT: where many entries of a weight matter a low-rank module trains, elsewhere the entries themselves."""

from __future__ import annotations

from typing import Any

from lrft.core.adapter import Adapter, Branch, LowRank, Shared
from lrft.core.entries import Entries
from lrft.core.params import Site
from lrft.methods.adapters._pair import Pair
from lrft.registry.axes import ADAPTERS
from lrft.registry.config import Field, PlacedConfig


@ADAPTERS.register
class SPT(Entries):
    """Sensitivity-aware tuning: a weight gets either a LoRA or a few entries that train, as its sensitivity has it.

        W' = W + s B A      where `init: spt_sensitivity` counts many sensitive entries
        W' = W + S          where it counts few: S is 0 outside them
        y  = x W'^T + b

    with r = `rank`, s = `alpha` / r; `entries` is what the init says at a weight, null for the low-rank form. A weight
    without a sensitive entry is frozen whole.

    Shapes: A (r, in) ~ U(-1/sqrt(in), 1/sqrt(in)), B (out, r) = 0; or the values of S (k) = 0, at `places` (k). W' = W
    at step 0.
    Trains: r (in + out) or k numbers per site. Memory: of entries as of `adapter: gps`.
    Source: He et al., "Sensitivity-Aware Visual Parameter-Efficient Fine-Tuning", ICCV 2023, and the authors' code
    (ziplab/SPT, its variant with LoRA of rank 8), whose rule, module and scale, 1 with `alpha` as large as `rank`, were
    read.
    Departures: carried from vision transformers to the linear layers of a language model. While it trains the code
    drops a module's output for one example in ten, and one in ten of the inputs of those of queries, keys and values;
    here nothing is dropped. Norms and biases, which it tunes whole where a fifth of their numbers is sensitive and by
    entries elsewhere, are what `trainable` names, chosen by nobody: of a language model they are one number in some
    thousands, and many have no bias. Entries are differences beside a base of any storage and no masked weights, which
    is less memory on a dense base too (as of `adapter: gps`), so moments, weight decay and the norm for clipping are of
    what trains alone.
    """

    aliases = {
        "sensitivity_aware spt_lora": "adapter: spt_sensitivity\ninit: spt_sensitivity",
    }
    provides = {"adapters", "mergeable", "linear_delta", "placed"}
    roles = {"values": "sparse"}

    config: Config

    class Config(PlacedConfig):
        rank: int = Field(8, gt=0, le=65_536, description="of the low-rank form")
        alpha: float = Field(8.0, gt=0, le=1_000_000)
        entries: int | None = Field(None, gt=0, description="entries that train, null for the low-rank form")

    @classmethod
    def at(cls, config: Config, site: Site, shared: Shared | None = None) -> Adapter:
        return SPTModule(config, site) if config.entries is None else cls(config, site)

    @staticmethod
    def count(config: Any, site: Site) -> int:
        if config.entries is not None:
            return int(config.entries)
        return SPTModule.count(config, site)


class SPTModule(Pair, LowRank):
    """The low-rank form."""

    name = "spt_sensitivity"
    provides = {"adapters", "mergeable", "linear_delta", "placed"}

    def __init__(self, config: SPT.Config, site: Site) -> None:
        super().__init__(config, site)
        self.scaling = config.alpha / config.rank

    def branch(self) -> Branch:
        return Branch(self.A, self.B, self.scaling)
