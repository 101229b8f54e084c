"""LT-SFT: the entries that full fine-tuning moved furthest train again, from the pretrained weights."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated

from torch import Tensor

from lrft.core.adapted import Adapted
from lrft.core.frozen import FrozenLinear
from lrft.core.params import Site
from lrft.core.shared import Hosting, Shared
from lrft.methods.adapters._share_of_entries import ShareOfEntries
from lrft.registry.axes import ADAPTERS
from lrft.registry.config import ADDED, Field


class Numbers(Shared):
    """How many numbers the model has, adapters apart; without a model, the weights of which some train."""

    def __init__(self, count: int) -> None:
        super().__init__()
        self.count = count

    def bind(self, model: Hosting) -> None:
        modules = list(model.hf.modules())
        stored = [one for one in modules if isinstance(one, FrozenLinear)]
        apart = {
            p
            for one in [*stored, *(m.adapter for m in modules if isinstance(m, Adapted))]
            for p in one.parameters()
        }
        biases = sum(one.out_features for one in stored if one.bias is not None)
        others = sum(p.numel() for p in model.hf.parameters() if p not in apart)
        self.count = sum(one.in_features * one.out_features for one in stored) + biases + others


@ADAPTERS.register
class LTSFT(ShareOfEntries):
    """Lottery-ticket sparse fine-tuning: a sparse difference, at the entries that matter when everything may move.

        phase 1:  W1 = the weight after full fine-tuning
        phase 2:  W' = W + S,  S = 0 outside the k largest entries of |W1 - W|
        y  = x W'^T + b
        loss += `pull` * sum over sites of |S| / N         with `pull` > 0, |S| the sum of absolute values

    Phase 1 is a run of its own, whose merged model `init: lt_sft` is told. Phase 2 is this run: it begins at W, with an
    optimizer and a schedule of its own. k = `entries` or, without it, what the init deals out of `share` of all entries
    of all weights, cut to a whole number, one at the least. N is how many numbers the model has.
    Several iterations, in each of which a part of the entries joins, are `init: {original: ...}`. Differences of one
    base add up, W + S_task + S_language, which `lrft merge --add` does with two runs.

    Shapes: the values of S (k) = 0, so W' = W at step 0; `places` (k).
    Trains: k numbers per site. Memory: of phase 2 as of `adapter: gps`; phase 1 is full fine-tuning.
    Source: Ansell et al., "Composable Sparse Fine-Tuning for Cross-Lingual Transfer", ACL 2022, and the authors' code
    (cambridgeltl/composable-sft), whose trainers were read; `share: 0.01` is its default.
    Departures: S is beside a base of any storage, where the code masks the gradients of W and keeps dense moments: 12
    bytes an entry of W, at `share: 0.01` 0.2 here, on a dense base as on any other. The norm that gradients are clipped
    by is of the entries, as there, where the mask comes first; weight decay pulls S to 0, where there it would shrink
    every weight. Parameters that the code trains dense beside S, heads say, are what `trainable` names. The pull to the
    start is off by default; phase 1 has none here.
    """

    aliases = {
        "lottery_ticket_sft composable_sft": "adapter: lt_sft\ninit: {method: lt_sft, tuned: MERGED_MODEL_FOLDER}",
        "sparse_l1_reg": "adapter: {method: lt_sft, pull: 0.1}\ninit: lt_sft",
        "n_ft_iterations": "adapter: lt_sft\n"
        "init: {method: lt_sft, tuned: MERGED_MODEL_FOLDER, original: PRETRAINED_MODEL_FOLDER}",
        "ft_params_proportion": "adapter: {method: lt_sft, share: 0.01}\n"
        "init: {method: lt_sft, tuned: MERGED_MODEL_FOLDER}",
    }
    provides = {"adapters", "mergeable", "linear_delta", "placed"}

    config: Config

    class Config(ShareOfEntries.Config):
        pull: Annotated[float, ADDED] = Field(
            0.0, ge=0, le=1_000_000, description="weight of the pull to the start by absolute differences"
        )

    def __init__(self, config: Config, site: Site, shared: Shared | None = None) -> None:
        super().__init__(config, site)
        self._numbers = [shared] if isinstance(shared, Numbers) else []  # a list, so that it is no submodule

    @classmethod
    def shared(cls, config: Config, sites: Mapping[str, Site], hidden_size: int) -> Shared | None:
        if config.pull == 0:
            return None
        return Numbers(sum(site.in_features * site.out_features for site in sites.values()))

    @classmethod
    def at(cls, config: Config, site: Site, shared: Shared | None = None) -> LTSFT:
        return cls(config, site, shared)

    def penalty(self) -> Tensor | None:
        if self.config.pull == 0:
            return None
        alone = self.site.in_features * self.site.out_features
        many = sum(one.count for one in self._numbers) or alone
        return self.config.pull / many * self.values.abs().sum()
