"""Laplace-LoRA: a Gaussian over the factors of a trained adapter, and what it makes of the probabilities of an answer.

    p(theta | D) = N(theta_MAP, P^-1),  P = blockdiag over l of H_l + lambda I,  H_l = (1/N) S_l kron A_l
    A_l = sum_n,t a a^T,  S_l = sum_n,t sum_c,c' Lambda_cc' g_c g_c'^T,  Lambda = (diag(p) - p p^T) / tau^2
    evidence(lambda, tau) = sum_n log p_n[y_n] - 1/2 (log det P - K log lambda + lambda ||theta_MAP||^2)
    f ~ N(f_MAP, J P^-1 J^T) / tau,  p(y | x, D) = mean over samples of softmax(f)

for every factor l of every site (A with a = x, g = s B^T df_c/dy; B with a = A x, g = s df_c/dy), over the N rows that
were trained on and all tokens t of them; f (C,) the logits of the C tokens that decide a row, p = softmax(f / tau), K
the number of parameters, J = df/dtheta. The prior N(0, I / lambda) is about 0, of A too. lambda maximises the evidence,
by Adam on its logarithm. The likelihood with temperature `tau` is a distribution, so its evidence has a maximum; one
that is raised to a power and not normalised has none (it grows with the temperature), so that is not offered.

Shapes: of a factor (m, p): S (m, m), A (p, p), J (rows, C, m, p). A side of `above` numbers or more is kept by the
leading `rank` eigenpairs of its factor, and P is lambda in what they leave out.
Source: Yang et al., "Bayesian Low-rank Adaptation for Large Language Models", ICLR 2024, arXiv 2308.13111; the authors'
scripts (run_gpt_laplace, on ASDL: exact Fisher, factors over all tokens, 1/N once, Adam at 0.1 from lambda 1, 100,000
samples with 1e-6 on the diagonal) and their library bayesian_lora (roots of large factors by incremental SVDs, rank
10).
Departures: settled here: the exact Fisher and all tokens as in the scripts, where bayesian_lora samples labels and
looks at the last token alone; padding is left out of A, which the scripts count; the output head, whose rows of the
classes the scripts take in, bears no adapter in lrft. The variance is formed in the
eigenbasis, which is the paper's Woodbury form without its difference of two large terms. `tau` is ours.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lrft.ops.kfac import Factor

RATE, STEPS = 0.1, 1000  # of Adam on log lambda
SAMPLES, JITTER = 100_000, 1e-6
ROUNDED = 1e-3  # of the largest eigenvalue of a variance: what rounding may leave below 0
CHUNK = 4_000_000  # numbers of samples that are drawn at a time


@dataclass(frozen=True)
class Block:
    """The curvature of one factor (m, p), left kron right: `left` (m, m) of gradients, `right` (p, p) of inputs."""

    left: Factor
    right: Factor

    @property
    def shape(self) -> tuple[int, int]:
        """Of the factor."""
        return len(self.left.vectors), len(self.right.vectors)

    @property
    def eigenvalues(self) -> Tensor:
        """Those that are kept, (k_left, k_right)."""
        return torch.outer(self.left.values, self.right.values)

    def scaled(self, number: float) -> Block:
        """The curvature times a number."""
        return Block(self.left, Factor(self.right.vectors, self.right.values * number))


@dataclass(frozen=True)
class Evidence:
    """What the evidence is made of.

    Attributes:
        eigenvalues: of the curvature, all that are kept, (k,) float64.
        parameters: K, those of eigenvalue 0 included.
        log_likelihood: of the rows that were trained on, summed.
        squared: ||theta_MAP||^2.
    """

    eigenvalues: Tensor
    parameters: int
    log_likelihood: float
    squared: float

    def at(self, precision: Tensor) -> Tensor:
        """The evidence at lambda, with a graph."""
        left_out = self.parameters - len(self.eigenvalues)
        log_det = torch.log(self.eigenvalues + precision).sum() + left_out * precision.log()
        ratio = log_det - self.parameters * precision.log()
        return self.log_likelihood - 0.5 * (ratio + precision * self.squared)

    def best(self, steps: int = STEPS, rate: float = RATE) -> tuple[float, float]:
        """Lambda after so many steps of Adam from 1, and the evidence there."""
        log_precision = torch.zeros((), dtype=torch.float64, requires_grad=True)
        optimizer = torch.optim.Adam([log_precision], lr=rate)
        with torch.enable_grad():
            for _ in range(steps):
                optimizer.zero_grad()
                (-self.at(log_precision.exp())).backward()
                optimizer.step()
        found = log_precision.detach().exp()
        return float(found), float(self.at(found))


def evidence_of(blocks: Sequence[Block], log_likelihood: float, squared: float) -> Evidence:
    """The evidence as a function of the prior's precision."""
    values = torch.cat([block.eigenvalues.flatten().double().cpu() for block in blocks])
    return Evidence(values, sum(m * p for m, p in (block.shape for block in blocks)), log_likelihood, squared)


def fisher_roots(logits: Tensor, temperature: float = 1.0) -> Tensor:
    """Vectors v with Lambda = sum_k v_k v_k^T, (rows, C) -> (rows, C, C): sqrt(p_k) (e_k - p) / tau."""
    p = torch.softmax(logits / temperature, dim=-1)
    apart = torch.eye(p.shape[-1], dtype=p.dtype, device=p.device) - p[:, None, :]
    return p.sqrt()[:, :, None] * apart / temperature


def variance(blocks: Mapping[str, Block], jacobians: Mapping[str, Tensor], precision: float) -> Tensor:
    """J P^-1 J^T, (rows, C, C), of jacobians (rows, C, m, p) by the name of their block."""
    return torch.stack([_variance(blocks[name], J, precision) for name, J in jacobians.items()]).sum(0)


def _variance(block: Block, J: Tensor, precision: float) -> Tensor:
    """1 / lambda in what the eigenvectors leave out; no eigenvalue is negative, so no term is."""
    U, V = block.left.vectors.to(J), block.right.vectors.to(J)
    inside = U.mT @ J @ V
    outside = J - U @ inside @ V.mT
    whitened = inside * (block.eigenvalues + precision).rsqrt().to(J)
    return _gram(whitened) + _gram(outside) / precision


def _gram(J: Tensor) -> Tensor:
    flat = J.flatten(2)
    return flat @ flat.mT


def predictive(mean: Tensor, variance: Tensor, samples: int, generator: torch.Generator) -> Tensor:
    """Mean of softmax over samples of N(mean, variance), (rows, C), float64; mean (rows, C), variance (rows, C, C).

    Raises:
        ValueError: the variance of a row is none.
    """
    mean, variance = mean.double().cpu(), variance.double().cpu()
    root = _root(variance)
    total = torch.zeros_like(mean)
    left, most = samples, max(1, CHUNK // mean.numel())
    while left:
        now = min(left, most)
        noise = torch.randn(now, *mean.shape, 1, dtype=torch.float64, generator=generator)
        total += torch.softmax(mean + (root @ noise)[..., 0], dim=-1).sum(0)
        left -= now
    return total / samples


def _root(variance: Tensor) -> Tensor:
    """R with R R^T = variance + `JITTER` I, its Cholesky factor; of what rounding made indefinite, by eigenvectors.

    Logits that move almost alike have differences smaller than what float32 loses of the variances.

    Raises:
        ValueError: it is not finite, or more than rounding is below 0.
    """
    if not bool(variance.isfinite().all()):
        raise ValueError("the variance of a logit is no finite number")
    root: Tensor
    root, failed = torch.linalg.cholesky_ex(variance + JITTER * torch.eye(variance.shape[-1]).to(variance))
    if not bool(failed.any()):
        return root
    values, vectors = torch.linalg.eigh((variance + variance.mT) / 2)
    if bool((values.amin(-1) < -ROUNDED * values.abs().amax(-1)).any()):
        raise ValueError("the variance of a logit is below 0")
    other = vectors * (values.clamp_min(0) + JITTER).sqrt()[:, None, :]
    return torch.where(failed[:, None, None] != 0, other, root)
