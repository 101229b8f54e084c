"""ABMLL's adapter: a distribution over the values that tasks have, of which the mean is a plain low-rank term."""

from __future__ import annotations

from typing import Annotated

import torch
from torch import Tensor

from lrft.core.adapter import Branch, LowRank, PeftForm
from lrft.core.amortized import Amortized
from lrft.core.params import Site
from lrft.core.peft import lora_keys
from lrft.methods.adapters._pair import Pair, start_pair
from lrft.registry.axes import ADAPTERS
from lrft.registry.config import AdapterConfig, Field
from lrft.registry.json import Json


def abmll_form_keys(config: ABMLL.Config, with_start: bool) -> dict[str, Json]:
    """Those of a plain LoRA."""
    return lora_keys(config.rank, config.alpha)


def abmll_form_tensors(adapter: ABMLL, start: ABMLL | None) -> dict[str, Tensor]:
    """The mean alone."""
    assert start is None, "no start is taken off the base"
    return {"A": adapter.A, "B": adapter.B}


@ADAPTERS.register
class ABMLL(Pair, Amortized, LowRank):
    """Amortized Bayesian meta-learning for LoRA: what a layer adds is normal, mean and log-variance low-rank maps.

        y ~ x W^T + b + N(mu, exp(v)),  mu = s (x A^T) B^T,  v = c + s (x C^T) D^T
        y = x W^T + b + mu                                        wherever nothing is drawn
        W' = W + s B A

    with r = `rank`, s = `alpha` / r, c = `log_variance`. Draws are made by `objective: abmll`, which takes A, B, C, D
    for the distribution over tasks, and copies of them for one task; it moves C and D. Everywhere else, in scores,
    generation, merging, export and under other objectives, this is the LoRA of the mean, C and D staying as they are.

    Shapes: A, C (r, in) ~ U(-1/sqrt(in), 1/sqrt(in)), B, D (out, r) = 0, so W' = W at step 0 and v = c.
    Trains: r (in + out) numbers per site, A and B. Beside them as many, C and D, which are saved with the adapter and
    which `objective: abmll` trains by a step of its own.
    Source: Zhang, Snell and Griffiths, "Amortized Bayesian Meta-Learning for Low-Rank Adaptation of Large Language
    Models", 2025, arXiv 2508.14285, and the authors' code, from which the form, r 8, alpha 16 and c -20 are.
    Departures: none from the code. The paper writes deviations B A + c I of the weights, where the code has
    log-variances of what a layer adds, by a map of its inputs, which are positive whatever C and D are.
    """

    aliases = {
        "amortized_bayesian_meta_learning": "adapter: abmll\nobjective: abmll\n"
        "data: {train: [owner/a, owner/b], mix: {order: alternating}}",
    }
    provides = {"adapters", "mergeable", "linear_delta", "trained_pair", "amortized"}
    peft = PeftForm(abmll_form_keys, abmll_form_tensors)

    config: Config

    class Config(AdapterConfig):
        rank: int = Field(8, gt=0, le=65_536)
        alpha: float = Field(16.0, gt=0, le=1_000_000)
        log_variance: Annotated[float, Field(ge=-80, le=20)] = Field(
            -20.0, description="logarithm of the variance at the beginning"
        )

    def __init__(self, config: Config, site: Site) -> None:
        super().__init__(config, site)
        self.scaling, self.log_variance = config.alpha / config.rank, config.log_variance

    def reset(self) -> None:
        super().reset()
        if not hasattr(self, "C"):
            self.register_buffer("C", torch.empty_like(self.A))
            self.register_buffer("D", torch.empty_like(self.B))
        start_pair(self.get_buffer("C"), self.get_buffer("D"))

    def branch(self) -> Branch:
        return Branch(self.A, self.B, self.scaling)
