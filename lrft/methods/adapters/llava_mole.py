"""LLaVA-MoLE: every token goes to one of several LoRA experts of its feed-forward block."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from lrft.core.context import real_tokens
from lrft.methods.adapters._expert_blocks import ExpertBlocks, FeedForward
from lrft.methods.adapters._routing import measure, route, switch_balance
from lrft.registry.axes import ADAPTERS
from lrft.registry.config import Field, model_validator


@ADAPTERS.register
class LLaVAMoLE(ExpertBlocks):
    """Top-1 mixture of LoRA experts in feed-forward blocks, one choice for a block's three maps, LoRA elsewhere.

        y = V (act(G x) * (U x)),  each map M of the three
        M x = W_M x + s B_M,e drop(x) A_M,e^T,  e = e(x) the likeliest of softmax(x R^T), x the block's input
        loss += balance mean over blocks of sum_e f_e p_e

    with E = `experts`, r = `rank`, s = `alpha` / r (`alpha` / sqrt(r) with `rslora: true`), act the block's activation,
    drop dropout of probability `dropout`; f_e the share of a block's real tokens that expert e got (sum 1) and p_e its
    mean probability: a block's sum is 1 / E when routing is uniform, and a step has the mean of its micro-batches'.
    Padding goes to no expert. The choice is used as it is, so the balance alone trains R; with `scale_by_prob: true`
    the change is multiplied by the probability of its expert and R learns from the task too. Linear layers outside of
    feed-forward blocks get a plain LoRA of the same settings, `rank_pattern` and `alpha_pattern` included.

    Shapes: A_M,e (r, in of the map) ~ U(-1/sqrt(in), 1/sqrt(in)), B_M,e (out of the map, r) = 0, so W' = W at step 0;
    R (E, hidden) ~ N(0, 0.02^2), one per block, float32, no bias.
    Trains: E (3 r (hidden + inner) + hidden) numbers per block, inner being the width between; r (in + out) per
    layer elsewhere.
    Source: Chen et al., "LLaVA-MoLE", 2024, arXiv 2401.16160, of which the abstract could be read: LoRA experts in the
    MLP alone and the top-1 choice token by token are its; the rest is read in another's code after the paper.
    Departures: carried from image and text to text. Settled here: one router a block, a change without its probability
    and the balance's form are that code's; f and p are shares, where it may have counts, which grow with the square of
    the tokens; the start of R is that of `mixlora`. All experts' products are formed, and those not chosen weigh 0.
    Advice: blocks must be gated ones, down_proj(act_fn(gate_proj(x)) * up_proj(x)). The experts depend on the token, so
    they cannot be merged.
    """

    provides = {"adapters", "experts", "expert_count", "routed"}

    config: Config

    class Config(ExpertBlocks.Config):
        experts: int = Field(3, gt=1, description="experts of every feed-forward block")
        rank: int = Field(32, gt=0, le=65_536, description="rank of each expert, and of the LoRAs elsewhere")
        alpha: float = Field(16.0, gt=0, le=1_000_000)
        scale_by_prob: bool = Field(
            False, description="multiply an expert's change by its probability, which trains the router too"
        )
        balance: float = Field(0.01, ge=0, description="weight of the balance loss; 0 for none")

        @model_validator(mode="after")
        def _check_router(self) -> LLaVAMoLE.Config:
            if self.balance == 0 and not self.scale_by_prob:
                raise ValueError("with balance 0 nothing trains the router; write scale_by_prob: true")
            return self

    @staticmethod
    def balanced_with(config: Any) -> str:
        return "all"  # each block has a term of its own, and their mean is the loss

    def forward(self, x: Tensor, base: FeedForward) -> Tensor:  # type: ignore[override]
        """(..., hidden) -> (..., hidden); `base` is the frozen block."""
        probabilities = route(x, self.router)
        likeliest = probabilities.argmax(-1)
        if self.training:
            self.routing.leave(measure(x, probabilities, likeliest[..., None]))
        sent = F.one_hot(likeliest, self.config.experts).to(probabilities)
        if (real := real_tokens(x)) is not None:
            sent = sent * real[..., None]
        if self.config.scale_by_prob:
            sent = sent * probabilities
        gate = base.gate_proj(x) + self.change("gate", x, sent)
        a = base.act_fn(gate) * (base.up_proj(x) + self.change("up", x, sent))
        return base.down_proj(a) + self.change("down", a, sent)

    def penalty(self) -> Tensor | None:
        loads = self.routing.take()
        if not loads or self.config.balance == 0:
            return None
        terms = torch.stack([switch_balance([load]) / len(load.slots) for load in loads])
        return self.config.balance * terms.mean()
