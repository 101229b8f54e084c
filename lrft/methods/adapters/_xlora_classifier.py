"""The classifier of X-LoRA, and the first pass through the model that it reads."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Protocol, cast
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lrft.core.adapted import Adapted, adapted
from lrft.core.shared import Hosting, Shared
from lrft.methods.adapters._given import Factors

if TYPE_CHECKING:
    from lrft.methods.adapters.xlora import XLoRA


class Cache(Protocol):
    """Keys and values of the tokens so far, as transformers keeps them."""

    def get_seq_length(self) -> int:
        """How many tokens it holds."""

    def reorder_cache(self, beams: Tensor) -> None:
        """Follow the beams that go on."""


class Classifier(Shared):
    """Scalings (..., layers or 1, n) of n adapters from hidden states (..., hidden), by a pass through the model.

    Args:
        sites: adapted layers that some adapter changes, in model order.
        given: what each adapter's folder holds, read once for all sites.
    """

    roles = {f"linears.{i}.{part}": "router" for i in range(16) for part in ("weight", "bias")}

    def __init__(
        self,
        config: XLoRA.Config,
        sites: list[str],
        hidden_size: int,
        given: Sequence[Mapping[str, Factors]] = (),
    ) -> None:
        super().__init__()
        self.config = config
        self.given = given
        self.places = {name: place if config.layerwise else 0 for place, name in enumerate(sites)}
        n = len(config.adapters)
        out = n * (len(sites) if config.layerwise else 1)
        widths = [hidden_size, *[config.size] * (config.depth - 1), out]
        self.linears = nn.ModuleList(nn.Linear(a, b) for a, b in pairwise(widths))
        self.scalings: Tensor | None = None
        self._scanning = False
        self._bound: list[Adapted] = []  # a list, so that the site is no submodule
        self._caches: WeakKeyDictionary[Cache, Cache] = WeakKeyDictionary()

    def bind(self, model: Hosting) -> None:
        """From now on every pass through the model's body is preceded by one that finds the scalings."""
        self.given = ()
        self._bound = [next(adapted(model.hf))[1]]
        body = model.hf.base_model
        assert isinstance(body, nn.Module)
        body.register_forward_pre_hook(self._before, with_kwargs=True)

    def forward(self, hidden: Tensor) -> Tensor:
        """(..., hidden) -> (..., layers or 1, n) float32."""
        config, h = self.config, hidden.float()
        for linear in self.linears[:-1]:
            h = F.dropout(F.relu(linear(h)), config.dropout, self.training)
        logits = self.linears[-1](h).unflatten(-1, (-1, len(config.adapters)))
        scalings = torch.softmax(logits / config.temperature, -1) if config.softmax else logits
        if config.top_k is None:
            return scalings
        kept, chosen = torch.topk(scalings, config.top_k, dim=-1)
        kept = torch.softmax(kept, -1) if config.softmax_topk else kept
        return torch.zeros_like(scalings).scatter(-1, chosen, kept)

    @property
    def idle(self) -> bool:
        """The first pass is the base model's own: every scaling is 0 there."""
        return self._scanning and self.config.scaling_pass_value == 0

    def at(self, site: str, x: Tensor) -> Tensor:
        """The scalings of the site for each token of x (..., in), (..., n), or (n,) in the first pass."""
        if self._scanning:
            return torch.full((len(self.config.adapters),), self.config.scaling_pass_value, device=x.device)
        if (
            x.is_meta
        ):  # one layer alone, to count its bytes: the scalings have a graph, as the classifier trains
            shape = (*x.shape[:-1], len(self.config.adapters))
            return torch.ones(shape, device=x.device, requires_grad=self.training)
        if self.scalings is None or self.scalings.shape[:-2] != x.shape[:-1]:
            raise ValueError(f"{site}: there are no scalings for these tokens; run the whole model on them")
        return self.scalings[..., self.places[site], :]

    def _before(self, body: nn.Module, args: tuple[object, ...], kwargs: dict[str, object]) -> None:
        if self._scanning or not self._bound[0].enabled:
            return
        if torch.compiler.is_compiling():
            raise ValueError("adapter.method: xlora runs the model twice a pass; write model.compile: false")
        cache = cast("Cache | None", kwargs.get("past_key_values"))
        own = {"past_key_values": self._cache_beside(cache), "use_cache": cache is not None}
        self._scanning = True
        try:
            with torch.no_grad():
                hidden = body(*args, **{**kwargs, **own}).last_hidden_state
        finally:
            self._scanning = False
        self.scalings = self(hidden)

    @staticmethod
    def _reorder_together(cache: Cache, beside: Cache) -> None:
        def reorder(beams: Tensor) -> None:
            for one in (cache, beside):
                type(one).reorder_cache(one, beams)

        cache.reorder_cache = reorder  # type: ignore[method-assign]

    def _cache_beside(self, cache: Cache | None) -> Cache | None:
        """The first pass's own cache for the same tokens: its keys and values are not those of the second."""
        if cache is None:
            return None
        beside = self._caches.get(cache)
        if beside is None and cache.get_seq_length() == 0:
            beside = self._caches[cache] = copy.deepcopy(cache)
            self._reorder_together(cache, beside)
        if beside is None or beside.get_seq_length() != cache.get_seq_length():
            raise ValueError(
                "the cache was filled or cut elsewhere; start with an empty one, or use_cache=False"
            )
        return beside
