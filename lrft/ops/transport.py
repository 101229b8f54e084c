"""Entropic optimal transport between two sets of points, by Sinkhorn's iterations on its dual."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

ROUNDS = 20  # iterations at most at each temperature but the last
LAST = 2000
MET = 1e-3  # of the mass, by which marginals are missed


@dataclass(frozen=True)
class Transport:
    """A solution.

    Attributes:
        f, g: dual potentials of the two sets, float64; f + c and g - c are the same solution.
        value: <a, f> + <b, g>, the cost of the plan and `eps` times its divergence from a b^T.
        missed: share of the mass that the plan has in the wrong place.
    """

    f: Tensor
    g: Tensor
    value: float
    missed: float


def sinkhorn(cost: Tensor, eps: float, a: Tensor | None = None, b: Tensor | None = None) -> Transport:
    """The least over plans P of <P, C> + eps KL(P | a b^T), with row sums a and column sums b; even ones by default.

        f_i <- -eps log sum_j b_j exp((g_j - C_ij) / eps)
        g_j <- -eps log sum_i a_i exp((f_i - C_ij) / eps)

    The temperature falls by half from the largest cost to `eps`, each one beginning where the one before ended.

    Args:
        cost: (n, m).
    """
    cost = cost.double()
    n, m = cost.shape
    log_a = torch.full((n,), -math.log(n), dtype=cost.dtype) if a is None else a.double().log()
    log_b = torch.full((m,), -math.log(m), dtype=cost.dtype) if b is None else b.double().log()
    f, g = cost.new_zeros(n), cost.new_zeros(m)
    temperature, missed = max(float(cost.max()), eps), math.inf
    while True:
        last = temperature <= eps
        for _ in range(LAST if last else ROUNDS):
            new = -temperature * torch.logsumexp((g - cost) / temperature + log_b, 1)
            # The plan of the potentials before has the row sums a exp((f - new) / eps); its column sums are b.
            missed = float((log_a.exp() * ((f - new) / temperature).exp().sub(1).abs()).sum()) / 2
            f = new
            g = -temperature * torch.logsumexp((f[:, None] - cost) / temperature + log_a[:, None], 0)
            if missed < MET:
                break
        if last:
            break
        temperature = max(temperature / 2, eps)
    value = float(log_a.exp() @ f + log_b.exp() @ g)
    return Transport(f, g, value, missed)
