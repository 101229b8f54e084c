"""Rows of their own in the place of some that the two frozen maps of the vocabulary have: what both maps then give."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F


def embedded_with(rows: Tensor, places: Tensor, ids: Tensor, embedded: Tensor, scale: float = 1.0) -> Tensor:
    """What the embedding gave (B, L, hidden), with rows (k, hidden) where `ids` (B, L) are among `places`.

    Args:
        places: (k,) ids that the rows stand for, rising.
        scale: what the embedding multiplies its rows by.
    """
    places = places.to(ids.device)
    place = torch.searchsorted(places, ids).clamp_max(len(places) - 1)
    here = places[place] == ids
    # Looked up in float32, so that the gradients of a token that stands at many places are summed in it.
    found = F.embedding(place, rows.to(ids.device)).to(embedded.dtype)
    return torch.where(here[..., None], found * scale if scale != 1.0 else found, embedded)


def scored_with(rows: Tensor, places: Tensor, hidden: Tensor, logits: Tensor, bias: Tensor | None) -> Tensor:
    """Logits (..., V) that a frozen head gave of `hidden` (..., hidden), those of `places` by the rows (k, hidden)."""
    places = places.to(logits.device)
    own = F.linear(hidden, rows.to(hidden.device, hidden.dtype), None if bias is None else bias[places])
    return logits.index_copy(-1, places, own)


def embedding_scale(embedding: nn.Module) -> float:
    """What an embedding says that it multiplies its rows by, rounded as it rounds it; a trial has to prove it."""
    said = getattr(embedding, "scalar_embed_scale", getattr(embedding, "embed_scale", 1.0))
    dtype = embedding.get_parameter("weight").dtype
    return float(torch.tensor(said, dtype=dtype, device="cpu")) if isinstance(said, int | float) else 1.0
