"""Selective LoRA: every site learns whether its low-rank update is used at all."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from lrft.core.adapter import Branch, LowRank, PeftForm
from lrft.core.callback import Callback
from lrft.core.params import Site
from lrft.core.peft import lora_keys
from lrft.core.run import Run
from lrft.methods.adapters._pair import empty_pair, start_pair
from lrft.registry.axes import ADAPTERS
from lrft.registry.config import AdapterConfig, Field
from lrft.registry.json import Json


def selective_form_keys(config: SelectiveLoRA.Config, with_start: bool) -> dict[str, Json]:
    """PEFT's keys of a site that is open."""
    return lora_keys(config.rank, config.alpha, config.dropout)


def selective_form_keys_here(adapter: SelectiveLoRA) -> dict[str, Json]:
    """Those of this site; a closed one keeps one component of zeros, which PEFT can hold."""
    config = adapter.config
    return selective_form_keys(config, False) if adapter.is_open else lora_keys(1, 1.0, config.dropout)


def selective_form_tensors(adapter: SelectiveLoRA, start: LowRank | None) -> dict[str, Tensor]:
    """A and B, the score left out."""
    if adapter.is_open:
        return {"A": adapter.A, "B": adapter.B}
    return {
        "A": adapter.A.new_zeros(1, adapter.site.in_features),
        "B": adapter.B.new_zeros(adapter.site.out_features, 1),
    }


@ADAPTERS.register
class SelectiveLoRA(LowRank):
    """LoRA behind a learned switch at every site; the sites whose score falls below a threshold are the base again.

        W' = W + 1[u >= `threshold`] s B A
        y  = x W^T + b + 1[u >= `threshold`] s (drop(x) A^T) B^T
        dL/du = dL/d1[...],    loss += `strength` / L * sum over sites of |u|

    with u the score of the site, s = `alpha` / r, r = `rank`, L the number of sites, drop dropout of probability
    `dropout`; the penalty is added from the share `penalty_from` of the run on. The gradient passes the step unchanged
    (straight through), so a closed site can open again. The penalty waits, as the score has no other gradient while
    B = 0.

    Shapes: A (r, in) ~ U(-1/sqrt(in), 1/sqrt(in)), B (out, r) = 0, so W' = W at step 0; u (1) = `score`, above the
    threshold: all sites are open.
    Trains: r (in + out) + 1 numbers per site. The result's `active` names the sites that are open. Exported as a plain
    LoRA; a closed site has one component of zeros there.
    Source: "Fine Tuning without Catastrophic Forgetting via Selective Low Rank Adaptation", 2025, arXiv 2501.15377, for
    blocks of LoRA behind an indicator; the indicator is that of the method it extends, Wallingford et al., "Task
    Adaptive Parameter Sharing for Multi-Task Learning" (TAPS), CVPR 2022, arXiv 2203.16708, in the code of its first
    author (MattWallingford/TAPS).
    Departures: settled here from that code, as the paper's own values were not to be had: `score` 0.15, `threshold`
    0.1 on the signed score, `strength` 1, the penalty after 2 of 30 epochs, as its option says (its loop, which counts
    from 0, waits for 3 of 31). Made for vision transformers, here on the linear layers of a language model.
    Advice: no weight decay, which closes sites beside the penalty. With Adam a score moves by about the learning rate a
    step, so a run is long enough to close a site from 0.05 / rate steps on.
    """

    aliases = {
        "selective_low_rank": "adapter: selective_lora",
    }
    provides = {"adapters", "mergeable", "linear_delta"}
    roles = {"A": "lora_A", "B": "lora_B", "score": "magnitude"}
    peft = PeftForm(selective_form_keys, selective_form_tensors, keys_here=selective_form_keys_here)

    config: Config

    class Config(AdapterConfig):
        rank: int = Field(16, gt=0, le=65_536)
        alpha: float = Field(32.0, gt=0, le=1_000_000)
        dropout: float = Field(0.0, ge=0, lt=1)
        threshold: float = Field(0.1, ge=-1000, le=1000, description="score from which on a site is used")
        score: float = Field(0.15, ge=-1000, le=1000, description="score of every site at step 0")
        strength: float = Field(
            1.0, ge=0, le=1_000_000, description="weight of the scores' mean size in the loss"
        )
        penalty_from: float = Field(0.067, ge=0, lt=1, description="share of the run before the penalty acts")

    def __init__(self, config: Config, site: Site) -> None:
        super().__init__(config, site)
        self.scaling = config.alpha / config.rank
        self.A, self.B = empty_pair(config.rank, site)
        self.score = nn.Parameter(torch.empty(1))
        self.weight = 0.0  # of |u| in the loss, now
        self.reset()

    @classmethod
    def timed(cls, config: Config) -> Callback:
        return _Penalty(config)

    def reset(self) -> None:
        start_pair(self.A, self.B)
        nn.init.constant_(self.score, self.config.score)

    @property
    def is_open(self) -> bool:
        """Whether the update is used; waits for the device."""
        return bool(self.score >= self.config.threshold)

    def branch(self) -> Branch:
        used = (self.score >= self.config.threshold).to(self.score.dtype)
        switch = used + (self.score - self.score.detach())  # the second is 0, and passes the gradient
        return Branch(self.A, switch * self.B, self.scaling, dropout=self.config.dropout)

    def penalty(self) -> Tensor | None:
        return self.weight * self.score.abs().sum() if self.weight else None

    @staticmethod
    def count(config: Config, site: Site) -> int:
        return int(config.rank * (site.in_features + site.out_features) + 1)


class _Penalty(Callback):
    """Turns the penalty on when its time has come, and says in the end which sites are open."""

    def __init__(self, config: SelectiveLoRA.Config) -> None:
        self.config = config
        self.adapters: list[SelectiveLoRA] = []

    def start(self, run: Run) -> None:
        found = (site.adapter for _, site in run.adapted())
        self.adapters = [adapter for adapter in found if isinstance(adapter, SelectiveLoRA)]

    def before_step(self, run: Run) -> None:
        acts = run.step >= self.config.penalty_from * run.planned_steps
        for adapter in self.adapters:
            adapter.weight = self.config.strength / len(self.adapters) if acts else 0.0

    def finish(self, run: Run) -> None:
        run.summary["active"] = [adapter.site.name for adapter in self.adapters if adapter.is_open]
