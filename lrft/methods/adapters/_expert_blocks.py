"""LoRA experts in gated feed-forward blocks: what the methods that route tokens once a block share."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Protocol, cast

import torch
from torch import Tensor, nn

from lrft.core.adapter import Adapter, Shared
from lrft.core.params import Site
from lrft.core.routed import Routed
from lrft.methods.adapters._routing import Balance, Routing
from lrft.methods.adapters.lora import LoRA
from lrft.ops.gated_term import gated_low_rank
from lrft.registry.config import Field

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


class ExpertBlocks(Routed, Adapter):
    """E LoRAs for each of a block's three maps, a router over them, and a plain LoRA at other linear layers.

    A subclass says its forward pass and its penalty. Changes of a map are `change`, stacked by expert: A (E r, in) and
    B (out, E r).
    """

    site_kinds = ("linear", "mlp")
    provides = {"adapters", "experts", "expert_count", "routed"}
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
        dropout: float = Field(0.05, ge=0, lt=1)

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
    def shared(cls, config: Any, sites: Mapping[str, Site], hidden_size: int) -> Shared | None:
        return Balance()

    @classmethod
    def at(cls, config: Any, site: Site, shared: Shared | None = None) -> Adapter:
        """Experts at a feed-forward block, a plain LoRA at any other linear layer."""
        if site.kind != "mlp":
            return AttentionLoRA(config, site)
        made = cls(config, site)
        if isinstance(shared, Balance):
            made.routing = shared.join(cls.balanced_with(config))
        return made

    @staticmethod
    def balanced_with(config: Any) -> str:
        """The blocks whose balance is one loss: those with the same answer."""
        return f"{config.experts}"  # E decides what can be balanced together

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

    def make_room(self, prefix: str, saved: Mapping[str, Tensor]) -> None:
        """The experts, where no block was there to make them for."""
        for key in (f"{factor}_{name}" for factor in "AB" for name in MAPS):
            if not hasattr(self, key) and (tensor := saved.get(f"{prefix}{key}")) is not None:
                setattr(self, key, nn.Parameter(torch.empty_like(tensor)))

    def reset(self) -> None:
        nn.init.normal_(self.router, std=0.02)
        for name in MAPS:
            nn.init.kaiming_uniform_(self.get_parameter(f"A_{name}"), a=math.sqrt(5))
            nn.init.zeros_(self.get_parameter(f"B_{name}"))

    def change(self, name: str, x: Tensor, gates: Tensor) -> Tensor:
        """Sum over e of gates[..., e] s (drop(x) A_e^T) B_e^T of one map; one draw of the dropout a slot."""
        A, B = self.get_parameter(f"A_{name}"), self.get_parameter(f"B_{name}")
        wide = (self.scaling * gates).repeat_interleave(self.config.rank, dim=-1)
        dropped = self.training and self.config.dropout > 0
        return gated_low_rank(
            x, A, B, wide, self.compute_dtype, [(len(A), self.config.dropout)] if dropped else ()
        )

    def take_load(self) -> dict[str, Tensor]:
        return self.routing.take_load()

    @staticmethod
    def count(config: Any, site: Site) -> int:
        if site.kind != "mlp":
            return LoRA.count(config, site)
        inner = site.inner_features
        return int(config.experts * (3 * config.rank * (site.in_features + inner) + site.in_features))


def _device(block: nn.Module | FeedForward) -> torch.device:
    return next(tensor for tensor in [*block.parameters(), *block.buffers()]).device


@torch.no_grad()
def _check_formula(block: FeedForward, hidden: int) -> None:
    """That the block is down(act(gate x) * up x), on one input: another block may bear the same names."""
    held = [t.dtype for t in [*block.parameters(), *block.buffers()] if t.is_floating_point()]
    dtype = getattr(block.gate_proj, "compute_dtype", None) or next(iter(held), torch.float32)
    x = torch.linspace(-1, 1, hidden, device=_device(block)).to(dtype)[None]
    expected = block.down_proj(block.act_fn(block.gate_proj(x)) * block.up_proj(x))
    if not torch.allclose(block(x), expected, rtol=1e-2, atol=1e-2):
        raise ValueError("needs a block that computes down_proj(act_fn(gate_proj(x)) * up_proj(x))")
