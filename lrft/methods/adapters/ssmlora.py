"""SSMLoRA: low-rank adapters of one kind hand a state from layer to layer."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lrft.core.adapter import Adapter, Shared
from lrft.core.context import recomputing
from lrft.core.frozen import FrozenLinear
from lrft.core.in_layer import layer_of
from lrft.core.params import Site
from lrft.methods.adapters._pair import empty_pair
from lrft.registry.axes import ADAPTERS
from lrft.registry.config import AdapterConfig, Field
from lrft.registry.errors import RecipeError

EPSILON = 1e-8


@ADAPTERS.register
class SSMLoRA(Adapter):
    """State space low-rank adaptation: what one layer's adapter saw of a token is a state that the next one's reads.

        u  = x A^T
        z  = h R_h + u R_u + h
        h' = (z - min z) / (max z - min z + 1e-8)      over the r entries
        y  = x W^T + b + alpha (u + leaky_relu(drop(h'))) B^T

    with r = `rank`, alpha = `alpha`, which nothing divides; drop is dropout of probability `dropout`. h is the h' of
    the same token at the last adapted layer of the same kind before (q_proj and q_proj, say), as a constant, and 0 at
    the first. A state is of one token and one pass through the model: packed documents, padding, other batches and
    tokens that came before have no part in it, so generation with a cache and recomputed activations give the same
    numbers.

    Shapes: A (r, in) ~ N(0, 1 / r), B (out, r) = 0, so the model is the pretrained one at step 0; R (2 r, r) = 0 holds
    R_h above R_u; h, u, z (tokens, r), float32. At the first layer of a kind R_h meets zeros and rests.
    Trains: r (in + out) + 2 r^2 numbers per site. The states of the last pass stay, r numbers a token and site.
    Source: Yu et al., "SSMLoRA: Enhancing Low-Rank Adaptation with State Space Model", NAACL 2025, arXiv 2502.04958,
    and the authors' code (yuhkalhic/SSMLoRA); made for classification, carried here to every linear layer.
    Departures: settled here: what a state is handed along. In the code the states of o_proj and of the MLP's layers go
    from layer to layer, those of q_proj and v_proj to the same layer in the next batch, none is ever reset, and rows
    and positions are drawn at random where shapes differ; here all go from layer to layer, and each pass begins anew.
    Advice: `rank: 8`, `alpha: 16`, a learning rate of 5e-6 in the authors' code, which adapts q_proj in even layers and
    v_proj in odd ones, beside o_proj and the MLP: `targets: ['layers.*[02468].self_attn.q_proj', ...]`. While z is
    constant, in the first steps, 1e-8 makes the gradient of R very large, and clipping then holds the rest back. It
    cannot be merged, being no change of a weight.
    """

    provides = {"adapters"}
    roles = {"A": "lora_A", "B": "lora_B", "R": "core"}

    config: Config

    class Config(AdapterConfig):
        rank: int = Field(8, gt=0, le=65_536)
        alpha: float = Field(16.0, gt=0, le=1_000_000, description="of the term, not divided by the rank")
        dropout: float = Field(0.1, ge=0, lt=1, description="of the state where the term reads it")

    def __init__(self, config: Config, site: Site, own: State, before: State | None) -> None:
        super().__init__(config, site)
        self.own, self.before = own, before
        self.scaling = config.alpha
        self.A, self.B = empty_pair(config.rank, site)
        self.R = nn.Parameter(torch.empty(2 * config.rank, config.rank))
        self.reset()

    @classmethod
    def shared(cls, config: Config, sites: Mapping[str, Site], hidden_size: int) -> Shared | None:
        return Chains(sites)

    @classmethod
    def at(cls, config: Config, site: Site, shared: Shared | None = None) -> SSMLoRA:
        chains = shared if isinstance(shared, Chains) else Chains({site.name: site})
        return cls(config, site, chains.states[site.name], chains.before[site.name])

    def reset(self) -> None:
        nn.init.normal_(self.A, std=self.config.rank**-0.5)
        nn.init.zeros_(self.B)
        nn.init.zeros_(self.R)

    def forward(self, x: Tensor, base: FrozenLinear) -> Tensor:
        dtype = self.compute_dtype or x.dtype
        u = F.linear(x.to(dtype), self.A.to(dtype)).float()
        h = self._handed(u)
        z = torch.cat([h, u], dim=-1) @ self.R.float() + h
        least, most = z.min(-1, keepdim=True).values, z.max(-1, keepdim=True).values
        state = (z - least) / (most - least + EPSILON)
        if not recomputing():  # the layers after this one have read it by now
            self.own.value = state.detach()
        seen = u + F.leaky_relu(F.dropout(state, self.config.dropout, self.training))
        return base(x) + F.linear((self.scaling * seen).to(dtype), self.B.to(dtype)).to(x.dtype)

    def _handed(self, u: Tensor) -> Tensor:
        """The state of the layer before, (..., r) float32.

        Raises:
            RecipeError: it is of other tokens.
        """
        if self.before is None or u.is_meta:  # one layer alone, to count its bytes
            return torch.zeros_like(u)
        if self.before.value is None or self.before.value.shape != u.shape:
            message = (
                f"{self.site.name} does not see the tokens that {self.before.name} saw, whose state it reads"
            )
            raise RecipeError(f"{message}; leave one of them out", "adapter.targets")
        return self.before.value.to(u.device)

    @staticmethod
    def count(config: Config, site: Site) -> int:
        return int(config.rank * (site.in_features + site.out_features + 2 * config.rank))


class State:
    """What one site leaves for the next.

    Attributes:
        value: (..., r) float32 of the last pass, without a graph; None before the first.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self.value: Tensor | None = None


class Chains(Shared):
    """Which site reads whose state: those of one kind in the order of the layers. Holds no parameters.

    Raises:
        RecipeError: two of one kind stand in one layer, as experts do, which see different tokens.
    """

    def __init__(self, sites: Mapping[str, Site]) -> None:
        super().__init__()
        self.states = {name: State(name) for name in sites}
        self.before: dict[str, State | None] = {}
        last: dict[str, State] = {}
        for name, state in self.states.items():
            kind = name.rpartition(".")[2]
            before = self.before[name] = last.get(kind)
            if before is not None and layer_of(before.name) == layer_of(name):
                message = f"{before.name} and {name} are of one layer and kind, and may see different tokens"
                raise RecipeError(f"{message}, so no state goes between them; name others", "adapter.targets")
            last[kind] = state
