"""Prefix tuning: trained keys and values that every attention finds before the text."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from lrft.core.adapter import Adapter, PeftForm, Shared
from lrft.core.params import Site
from lrft.core.virtual import places, virtual_ids
from lrft.registry.axes import ADAPTERS
from lrft.registry.config import AdapterConfig, Field
from lrft.registry.json import Json


class Layer(Protocol):
    """What a cache holds of one layer, (B, heads, L, head) each."""

    keys: Tensor
    values: Tensor


class Cache(Protocol):
    """Keys and values of all layers."""

    layers: Sequence[Layer]


class Output(Protocol):
    """What a pass with a cache gives."""

    past_key_values: Cache


class Model(Protocol):
    """The model of transformers."""

    def __call__(self, *, input_ids: Tensor, use_cache: bool) -> Output: ...

    def parameters(self) -> Iterator[Tensor]: ...


@torch.no_grad()
def prefix_form(
    adapters: Sequence[PrefixTuning], hf: Model
) -> tuple[dict[str, Tensor], dict[str, Json]] | None:
    """PEFT's one tensor: what the caches of all layers hold after the virtual tokens, keys rotated to their places.

    It has none for models some of whose layers are no attention, or have heads of another number or width.
    """
    n = adapters[0].config.tokens
    device = next(hf.parameters()).device
    cache = hf(input_ids=torch.tensor([virtual_ids(n)], device=device), use_cache=True).past_key_values
    if not all(hasattr(layer, "keys") for layer in cache.layers):
        return None
    layers = [(layer.keys[0], layer.values[0]) for layer in cache.layers]  # each (heads, n, head)
    if len({part.shape for layer in layers for part in layer}) > 1:
        return None
    both = torch.stack([part for layer in layers for part in layer])  # (2 layers, heads, n, head)
    heads, width = both.shape[1], both.shape[1] * both.shape[3]
    keys: dict[str, Json] = {
        "peft_type": "PREFIX_TUNING",
        "num_virtual_tokens": n,
        "token_dim": width,
        "num_transformer_submodules": 1,
        "num_attention_heads": heads,
        "num_layers": len(layers),
        "encoder_hidden_size": width,
        "prefix_projection": False,
    }
    return {"prompt_embeddings": both.permute(2, 0, 1, 3).reshape(n, -1)}, keys


@ADAPTERS.register
class PrefixTuning(Adapter):
    """Keys and values of a few positions before every text, trained layer by layer.

        attention(q, [K_P, K], [V_P, V]),  [K_P, V_P] = tanh(P' W_1^T + b_1) W_2^T + b_2

    with n = `tokens` positions in P'; W_1 and P' are shared by all layers, W_2 is each layer's own, and `projection` is
    the width between. With `projection: null` K_P and V_P train themselves. The positions are the first n of every
    document, so keys are rotated and normalised there as the model's own keys are.

    Shapes: P' (n, hidden) ~ N(0, 1), W_1 (projection, hidden), W_2 (2 kv, projection), kv the width of its keys; or
    K_P, V_P (n, kv) ~ N(0, `std`^2). The model is not the pretrained one at step 0.
    Trains: 2 kv (projection + 1) numbers per attention, and hidden n + (hidden + 1) projection shared by all; or 2 n kv
    numbers per attention without a projection.
    Source: Li and Liang, "Prefix-Tuning: Optimizing Continuous Prompts for Generation", ACL 2021, arXiv 2101.00190;
    logits checked against PEFT's.
    Departures: PEFT and the authors train keys as they are used, behind rotation and norm, here they are trained before
    both, which is the same set of functions where keys are not normalised; an adapter folder holds them as used.
    Advice: the n positions come on top of `train.max_length`. Attentions need layers k_proj and v_proj of one width. It
    cannot be merged, being no change of a weight.
    """

    aliases = {
        "prefix p_tuning_v2": "adapter: prefix_tuning",
    }
    site_kinds = ("attention",)
    provides = {"adapters", "moved_start"}
    requires = {"eager"}
    roles = {"keys": "embedding", "values": "embedding", "up": "matrix", "bias": "vector"}
    peft = PeftForm(together=prefix_form)

    config: Config

    class Config(AdapterConfig):
        tokens: int = Field(20, gt=0, description="virtual tokens before every text")
        projection: int | None = Field(
            512,
            gt=0,
            description="width of the network that keys and values come from; null: they train themselves",
        )
        std: float = Field(0.02, gt=0, description="standard deviation at step 0 without a projection")

    def __init__(self, config: Config, site: Site, shared: Shared | None = None) -> None:
        super().__init__(config, site)
        self._encoder = (shared,)  # a tuple, so that it is no part of this module: it is saved once
        width = site.out_features
        if config.projection is None:
            self.keys = nn.Parameter(torch.empty(config.tokens, width).normal_(std=config.std))
            self.values = nn.Parameter(torch.empty(config.tokens, width).normal_(std=config.std))
        else:
            bound = config.projection**-0.5
            self.up = nn.Parameter(torch.empty(2 * width, config.projection).uniform_(-bound, bound))
            self.bias = nn.Parameter(torch.empty(2 * width).uniform_(-bound, bound))

    @classmethod
    def at(cls, config: Config, site: Site, shared: Shared | None = None) -> PrefixTuning:
        return cls(config, site, shared)

    @classmethod
    def shared(cls, config: Config, sites: Mapping[str, Site], hidden_size: int) -> Shared | None:
        return None if config.projection is None else Encoder(config.tokens, hidden_size, config.projection)

    def forward(self, *arguments: object, base: nn.Module, **named: object) -> Any:  # type: ignore[override]
        """What the attention gives, its keys and values replaced at the virtual positions."""
        pairs = zip((base.k_proj, base.v_proj), self.prefix(), strict=True)
        handles = [layer.register_forward_hook(_putting(rows)) for layer, rows in pairs]  # type: ignore[union-attr]
        try:
            return base(*arguments, **named)
        finally:
            for handle in handles:
                handle.remove()

    def prefix(self) -> tuple[Tensor, Tensor]:
        """K_P and V_P, (n, kv) each, before rotation and norm."""
        if self.config.projection is None:
            return self.keys, self.values
        (encoder,) = self._encoder
        assert isinstance(encoder, Encoder), "with a projection all layers share its first half"
        keys, values = (encoder() @ self.up.mT + self.bias).chunk(2, dim=-1)
        return keys, values

    @staticmethod
    def virtual_tokens(config: Config) -> int:
        return int(config.tokens)

    @staticmethod
    def count(config: Config, site: Site) -> int:
        if config.projection is None:
            return int(2 * config.tokens * site.out_features)
        return int(2 * site.out_features * (config.projection + 1))


class Encoder(Shared):
    """tanh(P' W_1^T + b_1), (n, projection): the half of the network that all layers share."""

    roles = {"prefix": "embedding", "down.weight": "matrix", "down.bias": "vector"}

    def __init__(self, tokens: int, hidden: int, projection: int) -> None:
        super().__init__()
        self.prefix = nn.Parameter(torch.randn(tokens, hidden))
        self.down = nn.Linear(hidden, projection)

    def forward(self) -> Tensor:
        """(n, projection)."""
        return torch.tanh(self.down(self.prefix))


def _putting(rows: Tensor) -> Callable[[nn.Module, tuple[Tensor, ...], Tensor], Tensor]:
    """A hook that puts `rows` (n, width) where the virtual tokens are in a layer's output (B, L, width)."""

    def put(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        found = places(output)
        return output if found is None else torch.where(found[0], rows[found[1]].to(output), output)

    return put
