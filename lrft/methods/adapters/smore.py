"""S'MoRE: residual experts of low rank in layers, of which every token picks a tree."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Annotated, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lrft.core.adapter import Adapter
from lrft.core.frozen import FrozenLinear
from lrft.core.params import Site
from lrft.core.routed import Routed
from lrft.methods.adapters._routing import Routing, logits_of, measure, switch_balance
from lrft.registry.axes import ADAPTERS
from lrft.registry.config import AdapterConfig, Field, model_validator

LAYERS = 4  # at most
ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "tanh": torch.tanh,
    "relu": torch.relu,
    "identity": lambda z: z,
}
OF_A_LAYER = {
    "A": "lora_A",
    "a": "vector",
    "B": "core",
    "b": "vector",
    "V": "core",
    "v": "vector",
    "P": "router",
    "p": "router",
    "Q": "router",
    "q": "router",
    "K": "router",
}


@ADAPTERS.register
class SMoRE(Routed, Adapter):
    """Structural mixture of residual experts: layers of low-rank experts, joined along a tree that a token chooses.

        y   = x W^T + b + U y_(L-1) + u
        y_l = sum over the f_l chosen i of w_i z_i,  of every parent in the layer above, l = 0 ... L - 1
        z_i = act(B_i (A_i x + a_i) + b_i + V_l y_(l-1) + v_l),  y_(l-1) that of i's own children; no V_0 and v_0
        w   = the f_l largest of p, divided by their sum where f_l > 1
        p   = softmax(K_l (Q_l relu(P_l c + p_l) + q_l)),  c = [D x + d, keys of the parent and of those above it]
        loss += balance sum over layers of s_l sum_i g_i h_i

    with L the length of `experts` (the s_l), `top_k` (the f_l) and `ranks` (the r_l), each from the lowest layer up;
    act = `activation`. Choices run from layer L - 1 down: every chosen expert chooses f_l children in the layer below,
    prod f_l leaves a token. Values then run up. g_i is the share of parents, of real tokens, that chose i (sum f_l) and
    h_i the mean of p_i over them: a layer's term is f_l `balance` where choices are uniform, and a step has the mean of
    its micro-batches'. Routing is float32 whatever the activations are. There is no scale.

    Shapes: A_i (r_l, in), B_i (d_l, r_l) and V_l (d_l, d_(l-1)) ~ U within 1 / sqrt of their last dimension, with
    d_l = s_0 r_0 + ... + s_l r_l; U (out, d_(L-1)) = 0, so W' = W at step 0; a, b, v and u are 0. Of the routing
    D (`narrow`, in), P_l (g, narrow + (L - 1 - l) g) and Q_l (g, g) with their vectors ~ U within 1 / sqrt of the last
    dimension of the matrix; keys K_l (s_l, g) ~ U(0, 1), g = `keys`.
    Trains: out (d_(L-1) + 1) + narrow (in + 1) + sum over layers of s_l (r_l (in + 1) + d_l (r_l + 1)), above the
    lowest d_l (d_(l-1) + 1), and g (narrow + (L - 1 - l) g + g + 2 + s_l), numbers per site. A step multiplies every
    token with all of these, those of experts that are not chosen too.
    Source: Zeng et al., "S'MoRE: Structural Mixture of Residual Experts for LLM Fine-tuning", 2025, arXiv 2504.06426;
    read in the authors' code (ZimpleX/SMoRE-LLM), whose example recipe sets these defaults.
    Departures: routing is float32 where the code's is in the activations' precision. Of the code's variants this is
    the switch gate behind a perceptron, with U at 0 and the activation around all of an expert; noisy and dense gates,
    experts shared by all layers and activations of children alone are not here.
    Advice: every layer forms s_l d_l values a token, whatever is chosen. As U is 0, experts move from the second step
    on. Of few `keys` all may be dead behind relu, and the gate with them. The change depends on the token, so it cannot
    be merged.
    """

    aliases = {"hier_moe": "adapter: smore"}
    provides = {"adapters", "experts", "routed"}
    roles = {
        "D": "router",
        "d": "router",
        "U": "lora_B",
        "u": "vector",
        **{f"{name}{layer}": role for layer in range(LAYERS) for name, role in OF_A_LAYER.items()},
    }

    config: Config
    D: nn.Parameter
    d: nn.Parameter
    U: nn.Parameter
    u: nn.Parameter

    class Config(AdapterConfig):
        targets: str | list[str] = Field(["mlp.*"], description="as for every adapter; by default the MLPs")
        experts: list[Annotated[int, Field(gt=0)]] = Field(
            [4], min_length=1, max_length=4, description="experts of each layer, from the lowest up"
        )
        top_k: list[Annotated[int, Field(gt=0)]] = Field(
            [2], min_length=1, max_length=4, description="experts of each layer that every parent chooses"
        )
        ranks: list[Annotated[int, Field(gt=0, le=65_536)]] = Field(
            [16], min_length=1, max_length=4, description="rank of the experts of each layer"
        )
        activation: Literal["tanh", "relu", "identity"] = Field("tanh", description="around every expert")
        keys: int = Field(32, gt=0, le=65_536, description="width of an expert's key")
        narrow: int = Field(32, gt=0, le=65_536, description="width to which routing brings x first")
        balance: float = Field(0.01, ge=0, description="weight of the balance loss; 0 for none")

        @model_validator(mode="after")
        def _check_layers(self) -> SMoRE.Config:
            layers = len(self.experts)
            for name, held in (("top_k", self.top_k), ("ranks", self.ranks)):
                if len(held) != layers:
                    raise ValueError(
                        f"{name} has {len(held)} entries, and experts {layers}; write one a layer"
                    )
            for k, experts in zip(self.top_k, self.experts, strict=True):
                if k > experts:
                    raise ValueError(f"top_k is {k} in a layer of {experts} experts; write at most {experts}")
            return self

    def __init__(self, config: Config, site: Site) -> None:
        super().__init__(config, site)
        self.routings = [Routing() for _ in config.experts]
        for name, shape in shapes_of(config, site).items():
            self.register_parameter(name, nn.Parameter(torch.empty(shape)))
        self.reset()

    def reset(self) -> None:
        for name, tensor in self.named_parameters():
            if name == "U" or name[0] in "abvu":
                nn.init.zeros_(tensor)
            elif name[0] == "K":
                nn.init.uniform_(tensor)
            else:  # a vector of the routing has the bound of its matrix
                matrix = self.get_parameter(name.upper()) if tensor.ndim == 1 else tensor
                bound = 1 / math.sqrt(matrix.shape[1])
                nn.init.uniform_(tensor, -bound, bound)

    def forward(self, x: Tensor, base: FrozenLinear) -> Tensor:
        return base(x) + self.update(x)

    def update(self, x: Tensor) -> Tensor:
        """What the chosen trees add, (..., in) -> (..., out)."""
        flat, dtype = x.reshape(-1, x.shape[-1]), self.compute_dtype or x.dtype
        layers = range(len(self.config.experts))
        A, a = (torch.cat([self.get_parameter(f"{name}{layer}") for layer in layers]) for name in "Aa")
        inner = F.linear(flat.to(dtype), A.to(dtype), a.to(dtype)).split(
            [s * r for s, r in zip(self.config.experts, self.config.ranks, strict=True)], dim=-1
        )
        values: Tensor | None = None
        for layer, (chosen, weights) in enumerate(self._choices(flat)):
            values = self._layer(layer, inner[layer], values, chosen, weights)
        assert values is not None
        y = F.linear(values[:, 0], self.U.to(dtype), self.u.to(dtype))
        return y.view(*x.shape[:-1], -1).to(x.dtype)

    def _choices(self, x: Tensor) -> list[tuple[Tensor, Tensor]]:
        """Of each layer, the lowest first: the children that every parent chose and their weights.

        x (tokens, in) -> (tokens, parents, f_l) twice, float32 weights.
        """
        found: list[tuple[Tensor, Tensor]] = []
        seen = (logits_of(x, self.D) + self.d)[:, None]
        for layer in reversed(range(len(self.config.experts))):
            P, p, Q, q, K = (self.get_parameter(f"{name}{layer}") for name in "PpQqK")
            probabilities = (F.linear(F.linear(seen, P, p).relu(), Q, q) @ K.mT).softmax(-1)
            weights, chosen = probabilities.topk(self.config.top_k[layer], dim=-1)
            if self.training:
                self.routings[layer].leave(measure(x, probabilities, chosen))
            if self.config.top_k[layer] > 1:
                weights = weights / weights.sum(-1, keepdim=True)
            found.append((chosen, weights))
            if layer:
                above = seen[:, :, None].expand(-1, -1, chosen.shape[-1], -1)
                seen = torch.cat([above, K[chosen]], dim=-1).flatten(1, 2)
        return found[::-1]

    def _layer(
        self, layer: int, inner: Tensor, below: Tensor | None, chosen: Tensor, weights: Tensor
    ) -> Tensor:
        """Values of every parent, (tokens, parents, d_l), from A x + a (tokens, s_l r_l) and those of the children."""
        experts, dtype = self.config.experts[layer], inner.dtype
        B = self.get_parameter(f"B{layer}").to(dtype).unflatten(0, (experts, -1))
        b = self.get_parameter(f"b{layer}").to(dtype).view(experts, -1)
        every = torch.einsum("tsr,sdr->tsd", inner.unflatten(-1, (experts, -1)), B) + b
        places = chosen.flatten(1)[..., None].expand(-1, -1, every.shape[-1])
        z = every.gather(1, places)
        if below is not None:
            V, v = (self.get_parameter(f"{name}{layer}").to(dtype) for name in "Vv")
            z = z + F.linear(below, V, v)
        values = ACTIVATIONS[self.config.activation](z).unflatten(1, weights.shape[1:])
        summed: Tensor = (weights[..., None].to(dtype) * values).sum(2)
        return summed

    def penalty(self) -> Tensor | None:
        loads = [routing.take() for routing in self.routings]
        if not all(loads) or self.config.balance == 0:
            return None
        terms = [k * switch_balance(load) for k, load in zip(self.config.top_k, loads, strict=True)]
        return self.config.balance * torch.stack(terms).sum()

    def take_load(self) -> dict[str, Tensor]:
        loads = [routing.take_load(f"layer {layer}") for layer, routing in enumerate(self.routings)]
        return {name: slots for load in loads for name, slots in load.items()}

    @staticmethod
    def count(config: Config, site: Site) -> int:
        return sum(math.prod(shape) for shape in shapes_of(config, site).values())


def shapes_of(config: SMoRE.Config, site: Site) -> dict[str, tuple[int, ...]]:
    """Name of every parameter -> its shape; those of a layer end in its number."""
    g, top, below = config.keys, len(config.experts) - 1, 0
    found: dict[str, tuple[int, ...]] = {}
    for layer, (s, r) in enumerate(zip(config.experts, config.ranks, strict=True)):
        d, seen = below + s * r, config.narrow + (top - layer) * g
        own = {"A": (s * r, site.in_features), "a": (s * r,), "B": (s * d, r), "b": (s * d,)}
        own |= {"V": (d, below), "v": (d,)} if layer else {}
        own |= {"P": (g, seen), "p": (g,), "Q": (g, g), "q": (g,), "K": (s, g)}
        found |= {f"{name}{layer}": shape for name, shape in own.items()}
        below = d
    found |= {"D": (config.narrow, site.in_features), "d": (config.narrow,)}
    return found | {"U": (site.out_features, below), "u": (site.out_features,)}
