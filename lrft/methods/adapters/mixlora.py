"""MixLoRA: whole feed-forward blocks as experts, each with LoRAs of its own on the one frozen block."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from typing import Protocol, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lrft.core.adapter import Adapter, Shared
from lrft.core.params import Site
from lrft.methods.adapters._routing import (
    Balance,
    Routing,
    choose,
    gated_low_rank,
    measure,
    route,
    switch_balance,
)
from lrft.methods.adapters.lora import LoRA
from lrft.registry.axes import ADAPTERS
from lrft.registry.config import Field, model_validator

MAPS = ("gate", "up", "down")
Map = Callable[[Tensor], Tensor]


class FeedForward(Protocol):
    """A feed-forward block with a gate, down(act(gate x) * up x)."""

    gate_proj: Map
    up_proj: Map
    down_proj: Map
    act_fn: Map

    def __call__(self, x: Tensor) -> Tensor: ...

    def parameters(self) -> Iterator[Tensor]: ...

    def buffers(self) -> Iterator[Tensor]: ...


class AttentionLoRA(LoRA):
    """The LoRA of a linear layer outside of feed-forward blocks; no part of PEFT's files, which know no experts."""


@ADAPTERS.register
class MixLoRA(Adapter):
    """Top-k mixture of feed-forward experts that share the frozen block, beside LoRA on the attention.

        y      = sum over the k chosen e of w_e(x) F_e(x)
        F_e(x) = V_e a_e,  a_e = act(G_e x) * (U_e x)
        G_e    = W_gate + s B_e A_e,  U_e and V_e likewise from W_up and W_down, each with a LoRA of its own
        w      = the k largest of softmax(x R^T), divided by their sum
        loss  += balance E sum_e f_e p_e

    with E = `experts`, k = `top_k`, r = `rank`, s = `alpha` / r (`alpha` / sqrt(r) with `rslora: true`), act the
    block's activation; f_e the share of tokens sent to expert e (sum k) and p_e its mean probability, both over the
    real tokens of all blocks together, which is not the mean of the blocks' own terms; the sum is k `balance` when
    routing is uniform. In training x is multiplied by uniform numbers within 1 +- `jitter`, and the inputs of the LoRAs
    are dropped with probability `dropout`. Linear layers outside of feed-forward blocks get a plain LoRA of the same
    settings, `rank_pattern` and `alpha_pattern` included. W_gate x and W_up x are formed once for all experts, and
    W_down once, on sum_e w_e a_e: it is linear.

    Shapes: A_e (r, in of its map) ~ U(-1/sqrt(in), 1/sqrt(in)), B_e (out of its map, r) = 0, so every expert and, as w
    sums to 1, the block is the pretrained one at step 0; R (E, hidden) ~ N(0, 0.02^2), one per block, float32.
    Trains: E (3 r (hidden + inner) + hidden) numbers per block, inner being the width of a_e; r (in + out) per
    attention layer.
    Source: Li et al., "MixLoRA", 2024, arXiv 2404.15159, and the authors' code (TUDB-Labs/MixLoRA, MoE-PEFT).
    Departures: `jitter` multiplies a copy of x, where the code changes it in place; `balance` is 1e-3 as in the code
    (1e-2 in the paper, as far as it is known); DoRA experts (MixDoRA) are not offered.
    Advice: blocks must be gated ones, down_proj(act_fn(gate_proj(x)) * up_proj(x)). The experts depend on the token, so
    they cannot be merged.
    """

    site_kinds = ("linear", "mlp")
    provides = {"adapters", "experts", "expert_count"}
    roles = {
        "router": "router",
        "A_gate": "lora_A",
        "A_up": "lora_A",
        "A_down": "lora_A",
        "B_gate": "lora_B",
        "B_up": "lora_B",
        "B_down": "lora_B",
    }

    config: Config

    class Config(LoRA.Config):
        experts: int = Field(8, gt=0, description="experts of every feed-forward block")
        top_k: int = Field(2, gt=0, description="experts a token is sent to")
        dropout: float = Field(0.05, ge=0, lt=1)
        balance: float = Field(1e-3, ge=0, description="weight of the balance loss; 0 for none")
        jitter: float = Field(
            0.0, ge=0, lt=1, description="in training x is multiplied by uniform numbers within 1 +- this"
        )

        @model_validator(mode="after")
        def _check_top_k(self) -> MixLoRA.Config:
            if self.top_k > self.experts:
                raise ValueError(f"top_k is {self.top_k}, but there are {self.experts} experts")
            return self

    A_gate: nn.Parameter
    A_up: nn.Parameter
    A_down: nn.Parameter
    B_gate: nn.Parameter
    B_up: nn.Parameter
    B_down: nn.Parameter

    def __init__(self, config: Config, site: Site) -> None:
        super().__init__(config, site)
        self.scaling = config.alpha / (math.sqrt(config.rank) if config.rslora else config.rank)
        self.router = nn.Parameter(torch.empty(config.experts, site.in_features))
        self.routing = Routing()

    @classmethod
    def shared(cls, config: Config, sites: Mapping[str, Site], hidden_size: int) -> Shared | None:
        return Balance()

    @classmethod
    def at(cls, config: Config, site: Site, shared: Shared | None = None) -> Adapter:
        """Experts at a feed-forward block, a plain LoRA at any other linear layer."""
        if site.kind != "mlp":
            return AttentionLoRA(config, site)
        made = cls(config, site)
        if isinstance(shared, Balance):
            made.routing = shared.join(f"{config.experts}")  # E decides what can be balanced together
        return made

    def fit(self, block: nn.Module) -> None:
        """Make the experts for a block with maps `gate_proj`, `up_proj`, `down_proj` and an `act_fn`.

        Raises:
            ValueError: the block is of another form.
        """
        maps = [getattr(block, f"{name}_proj", None) for name in MAPS]
        if None in maps or not callable(getattr(block, "act_fn", None)):
            held = ", ".join(name for name, _ in block.named_children())
            raise ValueError(
                f"needs a block of gate_proj, up_proj, down_proj and act_fn, but it holds {held}"
            )
        total = self.config.experts * self.config.rank
        with torch.device(_device(block)):
            for name, layer in zip(MAPS, maps, strict=True):
                assert layer is not None
                setattr(self, f"A_{name}", nn.Parameter(torch.empty(total, int(layer.in_features))))
                setattr(self, f"B_{name}", nn.Parameter(torch.empty(int(layer.out_features), total)))
        if _device(block).type != "meta":
            _check_formula(cast(FeedForward, block), self.site.in_features)
        self.reset()

    def reset(self) -> None:
        nn.init.normal_(self.router, std=0.02)
        for name in MAPS:
            nn.init.kaiming_uniform_(self.get_parameter(f"A_{name}"), a=math.sqrt(5))
            nn.init.zeros_(self.get_parameter(f"B_{name}"))

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
            a = base.act_fn(gate + self._change("gate", x, sent)) * (up + self._change("up", x, sent))
            weight = weights[..., slot, None]
            mixed = mixed + weight * a
            change = change + self._change("down", a, sent * weight)
        return base.down_proj(mixed.to(x.dtype)) + change

    def _change(self, name: str, x: Tensor, gates: Tensor) -> Tensor:
        """Sum over e of gates[..., e] s (drop(x) A_e^T) B_e^T of one map; one draw of the dropout a slot."""
        dropped = F.dropout(x, self.config.dropout) if self.training and self.config.dropout > 0 else x
        A, B = self.get_parameter(f"A_{name}"), self.get_parameter(f"B_{name}")
        wide = (self.scaling * gates).repeat_interleave(self.config.rank, dim=-1)
        return gated_low_rank(dropped, A, B, wide, self.compute_dtype)

    def penalty(self) -> Tensor | None:
        loads = self.routing.take()
        config = self.config
        return config.balance * config.top_k * switch_balance(loads) if loads and config.balance > 0 else None

    @staticmethod
    def count(config: Config, site: Site) -> int:
        if site.kind != "mlp":
            return LoRA.count(config, site)
        inner = site.inner_features
        return int(config.experts * (3 * config.rank * (site.in_features + inner) + site.in_features))


def _device(block: nn.Module) -> torch.device:
    return next(tensor for tensor in [*block.parameters(), *block.buffers()]).device


@torch.no_grad()
def _check_formula(block: FeedForward, hidden: int) -> None:
    """That the block is down(act(gate x) * up x), on one input: another block may bear the same names."""
    tensor = next(t for t in [*block.parameters(), *block.buffers()] if t.is_floating_point())
    dtype = getattr(block.gate_proj, "compute_dtype", tensor.dtype)
    x = torch.linspace(-1, 1, hidden, device=tensor.device).to(dtype)[None]
    expected = block.down_proj(block.act_fn(block.gate_proj(x)) * block.up_proj(x))
    if not torch.allclose(block(x), expected, rtol=1e-2, atol=1e-2):
        raise ValueError("needs a block that computes down_proj(act_fn(gate_proj(x)) * up_proj(x))")
