"""MixLoRA: whole feed-forward blocks as experts, each with LoRAs of its own on the one frozen block."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from lrft.methods.adapters._expert_blocks import ExpertBlocks, FeedForward
from lrft.methods.adapters._routing import choose, measure, route, switch_balance
from lrft.registry.axes import ADAPTERS
from lrft.registry.config import Field, model_validator


@ADAPTERS.register
class MixLoRA(ExpertBlocks):
    """Top-k mixture of feed-forward experts that share the frozen block, beside LoRA on the attention.

        y      = sum over the k chosen e of w_e(x) F_e(x)
        F_e(x) = V_e a_e,  a_e = act(G_e x) * (U_e x)
        G_e    = W_gate + s B_e A_e,  U_e and V_e likewise from W_up and W_down, each with a LoRA of its own
        w      = the k largest of softmax(x R^T), divided by their sum
        loss  += balance E sum_e f_e p_e

    with E = `experts`, k = `top_k`, r = `rank`, s = `alpha` / r (`alpha` / sqrt(r) with `rslora: true`), act the
    block's activation; f_e the share of tokens sent to expert e (sum k) and p_e its mean probability, both over the
    real tokens of all blocks together, which is not the mean of the blocks' own terms; the sum is k `balance` when
    routing is uniform; a step has the mean of its micro-batches' sums, as in the code. In training x is multiplied by
    uniform numbers within 1 +- `jitter`, and the inputs of the LoRAs are dropped with probability `dropout`. Linear
    layers outside of feed-forward blocks get a plain LoRA of the same settings, `rank_pattern` and `alpha_pattern`
    included. W_gate x and W_up x are formed once for all experts, and W_down once, on sum_e w_e a_e: it is linear.

    Shapes: A_e (r, in of its map) ~ U(-1/sqrt(in), 1/sqrt(in)), B_e (out of its map, r) = 0, so every expert and, as w
    sums to 1, the block is the pretrained one at step 0; R (E, hidden) ~ N(0, 0.02^2), one per block, float32.
    Trains: E (3 r (hidden + inner) + hidden) numbers per block, inner being the width of a_e; r (in + out) per
    attention layer. A step multiplies every token of a slot with all experts of three maps, chosen or not, and passes
    over it once more for each draw of their dropout.
    Source: Li et al., "MixLoRA", 2024, arXiv 2404.15159, and the authors' code (TUDB-Labs/MixLoRA, MoE-PEFT).
    Departures: `jitter` multiplies a copy of x, where the code changes it in place; `balance` is 1e-3 as in the code
    (1e-2 in the paper, as far as it is known); DoRA experts (MixDoRA) are not offered.
    Advice: blocks must be gated ones, down_proj(act_fn(gate_proj(x)) * up_proj(x)). The experts depend on the token, so
    they cannot be merged.
    """

    provides = {"adapters", "experts", "expert_count", "routed"}

    config: Config

    class Config(ExpertBlocks.Config):
        top_k: int = Field(2, gt=0, description="experts a token is sent to")
        balance: float = Field(1e-3, ge=0, description="weight of the balance loss; 0 for none")
        jitter: float = Field(
            0.0, ge=0, lt=1, description="in training x is multiplied by uniform numbers within 1 +- this"
        )

        @model_validator(mode="after")
        def _check_top_k(self) -> MixLoRA.Config:
            if self.top_k > self.experts:
                raise ValueError(f"top_k is {self.top_k}, but there are {self.experts} experts")
            return self

    def forward(self, x: Tensor, base: FeedForward) -> Tensor:  # type: ignore[override]
        """(..., hidden) -> (..., hidden); `base` is the frozen block."""
        config = self.config
        if self.training and config.jitter > 0:
            x = x * torch.empty_like(x).uniform_(1 - config.jitter, 1 + config.jitter)
        probabilities = route(x, self.router)
        weights, chosen = choose(probabilities, config.top_k)
        if self.training:
            self.routing.leave(measure(x, probabilities, chosen))
        gate, up = base.gate_proj(x), base.up_proj(x)
        mixed, change = torch.zeros((), device=x.device), torch.zeros((), device=x.device)
        for slot in range(config.top_k):
            sent = F.one_hot(chosen[..., slot], config.experts).to(weights)
            a = base.act_fn(gate + self.change("gate", x, sent)) * (up + self.change("up", x, sent))
            weight = weights[..., slot, None]
            mixed = mixed + weight * a
            change = change + self.change("down", a, sent * weight)
        return base.down_proj(mixed.to(x.dtype)) + change

    def penalty(self) -> Tensor | None:
        loads = self.routing.take()
        config = self.config
        return config.balance * config.top_k * switch_balance(loads) if loads and config.balance > 0 else None
