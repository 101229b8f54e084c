"""Keys and values of rows that came at different times, in one batch padded on the left."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from transformers.cache_utils import DynamicCache, DynamicLayer

from lrft.model.asked import asked_of, distance_between, reference, row_of, two_documents
from lrft.model.batching import own_settings, stock_attention
from lrft.model.causal_lm import CausalLM, takes
from lrft.model.hf import HF


class Joined:
    """The past of a batch of rows.

    Attributes:
        lengths: real tokens of each row.
    """

    def __init__(self, hf: HF) -> None:
        self._hf = hf
        self._cache = DynamicCache()  # without a configuration every layer keeps all positions
        self.lengths: list[int] = []

    @property
    def width(self) -> int:
        """Positions that are kept of every row, padding included."""
        return max(self.lengths, default=0)

    @torch.no_grad()
    def step(self, rows: Sequence[Sequence[int]], pad_id: int) -> Tensor:
        """Take so many more tokens of every row; returns the logits after the last, (B, V) float32.

        Rows are all as long as one another but in the first step.
        """
        device = self._hf.get_input_embeddings().weight.device
        longest = max(map(len, rows))
        before = self.lengths or [0] * len(rows)
        self.lengths = [past + len(row) for past, row in zip(before, rows, strict=True)]
        ids = torch.tensor([[pad_id] * (longest - len(row)) + list(row) for row in rows], device=device)
        total = torch.tensor(self.lengths, device=device)[:, None]
        places = torch.arange(self.width, device=device)[None] - (self.width - total)
        inputs: dict[str, Any] = {"input_ids": ids, "attention_mask": (places >= 0).long()}
        inputs |= {"past_key_values": self._cache, "use_cache": True}
        if takes(self._hf, "position_ids"):
            inputs["position_ids"] = places[:, -longest:].clamp_min(0)
        if takes(self._hf, "logits_to_keep"):
            inputs["logits_to_keep"] = 1
        return self._hf(**inputs).logits[:, -1].float()

    @torch.no_grad()
    def add(self, other: Joined, order: Sequence[int]) -> None:
        """Rows of another batch come after these; then all stand in `order`."""
        width = max(self.width, other.width)
        device = self._hf.get_input_embeddings().weight.device
        places = torch.tensor(order, device=device)
        made = DynamicCache()
        pairs = [_tensors(one) for one in (self._cache, other._cache)]
        for index, layer in enumerate(pairs[1]):
            earlier = pairs[0][index] if pairs[0] else None
            both = [
                torch.cat([*([_wide(earlier[which], width)] if earlier else []), _wide(layer[which], width)])
                for which in (0, 1)
            ]
            made.update(both[0][places], both[1][places], index)
        lengths = [*self.lengths, *other.lengths]
        self._cache, self.lengths = made, [lengths[place] for place in order]

    @torch.no_grad()
    def keep(self, rows: Sequence[int]) -> None:
        """Only these rows stay, and no position that all of them pad."""
        lengths = [self.lengths[row] for row in rows]
        cut = self.width - max(lengths, default=0)
        made = DynamicCache()
        if rows:
            for index, (keys, values) in enumerate(_tensors(self._cache)):
                places = torch.tensor(rows, device=keys.device)
                made.update(keys[places, :, cut:], values[places, :, cut:], index)
        self._cache, self.lengths = made, lengths


@torch.no_grad()
def joins(model: CausalLM) -> bool:
    """Whether rows that come later and leave earlier than others are computed as they are alone.

    A model that keeps a state beside keys and values, or in their place, has it in no place that is known here.
    """
    with asked_of(model) as (asked, limits), own_settings(asked.hf), stock_attention(asked.hf):
        first, second = two_documents(asked)
        early, late, new = [first[:5], second[:2]], second[:3], first[5:8]
        try:
            past, added = Joined(asked.hf), Joined(asked.hf)
            past.step(early, 0)
            added.step([late], 0)
            past.add(added, [0, 2, 1])
            past.step([[new[0]], [new[1]], [new[2]]], 0)
            past.keep([1, 2])
            logits = past.step([[new[2]], [new[0]]], 0)
        except Exception:  # whatever a model's own code raises: it keeps something else
            return False
        rows = [[*late, new[1], new[2]], [*early[1], new[2], new[0]]]
        alone = torch.cat([reference(asked, row_of(asked, row))[0, -1:] for row in rows])
        return distance_between(logits, alone, limits) <= limits.value


def _tensors(cache: DynamicCache) -> list[tuple[Tensor, Tensor]]:
    """Keys and values (B, heads, L, d) of every layer."""
    layers = [layer for layer in cache.layers if isinstance(layer, DynamicLayer)]
    return [
        (layer.keys, layer.values)
        for layer in layers
        if layer.keys is not None and layer.values is not None and layer.is_initialized
    ]


def _wide(tensor: Tensor, width: int) -> Tensor:
    return F.pad(tensor, (0, 0, width - tensor.shape[2], 0))
