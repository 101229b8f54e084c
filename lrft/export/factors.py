"""Layers of low rank as two layers."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from lrft.core import stop
from lrft.model.causal_lm import CausalLM
from lrft.model.sites import linear_sites

NOISE = 1e-5  # of the largest singular value: what a float32 product of factors has beyond its rank


@torch.no_grad()
def split_layers(dense: CausalLM) -> dict[str, int]:
    """Put two layers in the place of every linear layer whose factors are smaller than its weight, in place.

    Args:
        dense: a plain model in float32.

    Returns:
        Layer -> its rank, of those that were split.
    """
    ranks = {}
    for name in linear_sites(dense):
        stop.poll()
        layer = dense.hf.get_submodule(name)
        if not isinstance(layer, nn.Linear):
            continue
        first, second = factors(layer.weight)
        if first.numel() + second.numel() >= layer.weight.numel():
            continue
        rank = ranks[name] = len(first)
        pair = nn.Sequential(
            nn.Linear(layer.in_features, rank, bias=False),
            nn.Linear(rank, layer.out_features, bias=layer.bias is not None),
        )
        pair.get_parameter("0.weight").copy_(first)
        pair.get_parameter("1.weight").copy_(second)
        if layer.bias is not None:
            pair.get_parameter("1.bias").copy_(layer.bias)
        dense.hf.set_submodule(name, pair.requires_grad_(False))
    return ranks


def factors(weight: Tensor) -> tuple[Tensor, Tensor]:
    """(out, in) -> S^1/2 V^T (k, in) and U S^1/2 (out, k), with k the rank up to float32's noise."""
    U, S, Vh = torch.linalg.svd(weight.float(), full_matrices=False)
    k = max(1, int((NOISE * S[0] < S).sum()))
    root = S[:k].sqrt()
    return root[:, None] * Vh[:k], U[:, :k] * root
