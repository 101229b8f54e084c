"""A model to ask, in evaluation mode and exact where it can be; two documents to ask with; how far answers differ."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

from lrft.core.frozen import FrozenLinear
from lrft.model.causal_lm import CausalLM

LENGTHS = (9, 7)  # tokens of the two documents, beyond the reach of the usual convolutions
SMALL = 50_000_000  # parameters up to which the questions are asked of a float32 copy, which has no rounding to excuse


@dataclass(frozen=True)
class Limits:
    """How far numbers may be apart, relative to the spread of the logits.

    Attributes:
        edit: where an edit must not be seen, as a share of where it must; the shapes are equal there.
        value: between two ways to compute the same logits.
        every: every position counts; else the median one, since rounding turns single choices of experts.
    """

    edit: float
    value: float
    every: bool


EXACT, ROUNDED = Limits(1e-5, 1e-3, True), Limits(2e-2, 1e-1, False)


@contextmanager
def asked_of(model: CausalLM) -> Iterator[tuple[CausalLM, Limits]]:
    """The model to ask, in evaluation mode, and what to allow it."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        small = sum(parameter.numel() for parameter in model.parameters()) <= SMALL
        # A stored layer decodes to the precision it was made for, so a copy of it computes in no other.
        small = small and not any(isinstance(module, FrozenLinear) for module in model.modules())
        if model.dtype == torch.float32:
            yield model, EXACT
        elif small and model.device.type == "cpu":
            yield _as_float32(model), EXACT
        else:
            yield model, ROUNDED
    finally:
        for module, training in modes:
            module.training = training


def reference(model: CausalLM, ids: Tensor) -> Tensor:
    """Logits (B, L, V) of transformers' own eager forward pass over rows without padding."""
    backend = model.attention
    model.hf.set_attn_implementation("eager")
    try:
        logits: Tensor = model.hf(input_ids=ids.to(model.device), use_cache=False).logits
        return logits
    finally:
        model.hf.set_attn_implementation(backend)


def _as_float32(model: CausalLM) -> CausalLM:
    exact = CausalLM(copy.deepcopy(model.hf).float())
    exact.hf.set_attn_implementation(model.attention)
    exact.scale, exact.softcap = model.scale, model.softcap
    return exact


def two_documents(model: CausalLM) -> tuple[list[int], list[int]]:
    """Token ids of two documents that share none, special ones left out."""
    config, size = model.hf.config.get_text_config(), model.hf.get_input_embeddings().num_embeddings
    special: set[int] = set()
    for name in ("pad_token_id", "bos_token_id", "eos_token_id"):
        value = getattr(config, name, None)
        special |= {value} if isinstance(value, int) else set(value or ())
    usable = [token for token in range(size) if token not in special] or list(range(size))
    step = max(1, len(usable) // sum(LENGTHS))
    drawn = [usable[(step * place) % len(usable)] for place in range(sum(LENGTHS))]
    return drawn[: LENGTHS[0]], drawn[LENGTHS[0] :]


def another(model: CausalLM, token: int, taken: set[int]) -> int:
    """A token that is none of those taken."""
    size = model.hf.get_input_embeddings().num_embeddings
    return next((t for t in range(size - 1, -1, -1) if t not in taken), (token + 1) % size)


def row_of(model: CausalLM, document: list[int]) -> Tensor:
    """The document as a batch of one, (1, L)."""
    return torch.tensor([document], device=model.device)


def spread(logits: Tensor) -> float:
    """The largest length of a position's logits; what is no number is infinitely long."""
    length = float(logits.norm(dim=-1).max())
    return max(length, 1e-30) if length == length else torch.inf


def distance_between(ours: Tensor, theirs: Tensor, limits: Limits) -> float:
    """How far the logits (tokens, V) of the worst, or of the median position are apart."""
    ours, theirs = (x.float() - x.float().mean(-1, keepdim=True) for x in (ours, theirs))
    apart = (ours - theirs).norm(dim=-1) / theirs.norm(dim=-1).mean().clamp_min(1e-30)
    return float(apart.max() if limits.every else apart.median())
