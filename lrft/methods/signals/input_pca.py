"""Principal components of a layer's inputs, batch by batch."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from lrft.core.stages import Statistic, Tokens
from lrft.ops.draws import seed_generators
from lrft.registry.axes import SIGNALS

Needed = Callable[[Mapping[str, Tensor], int], Mapping[str, int]]


@SIGNALS.register
class InputPCA(Statistic):
    """Incremental principal component analysis of a site's inputs at answer tokens, batch by batch.

        U S' V' = SVD of [diag(S) V; X - x; sqrt(n t / (n + t)) (m - x)],  the leading k
        S, V <- S', V';  m <- (n m + t x) / (n + t);  n <- n + t
        ratio = S^2 / total variance

    with V, S, m the components, their singular values and the mean of the inputs after n tokens, X the t new rows, x
    their mean. Signs: each row's largest entry is > 0. A component has settled when its cosine with itself before the
    last micro-batch is at least `tau`.

    Shapes: V (k, in), S (k), m, x (in), X (t, in). Result: (k, in + 3) in float32, the columns [V | S | ratio |
    cosine], the cosine 0 until there are two batches.
    Keeps: V, S, m, cosines and total variance; inputs that wait for enough tokens. Forward passes alone; sites that
    share an input share it.
    Source: Ross et al., "Incremental Learning for Robust Visual Tracking", 2008, as in PEFT's `IncrementalPCA` and its
    use by EVA (randomised SVD of 2 k directions, seed 42, float64 after the first batch).
    Departures: micro-batches with fewer tokens than components wait for the next ones; PEFT skips them.

    Args:
        components: k, at most the input features.
        tau: cosine at which a component counts as settled.
        rank: components that this site brings into the budget of `needed`.
        needed: (site -> explained-variance ratios, budget) -> how many leading components of each site must have
            settled; by default all of them.
        tokens: `answers`, or `all` real ones.
        niter: subspace iterations of the randomised SVD; None for the exact one.
        seed: of the randomised SVD.
    """

    backward = False
    of_input = True

    def __init__(
        self,
        *,
        components: int = 16,
        tau: float = 0.99,
        rank: int = 0,
        needed: Needed | None = None,
        tokens: Literal["answers", "all"] = "answers",
        niter: int | None = 4,
        seed: int = 42,
    ) -> None:
        self.components = components
        self.tau = tau
        self.rank = rank
        self.needed = needed
        self.tokens = tokens
        self.niter = niter
        self.seed = seed
        self.count = 0
        self.variance = 0.0  # summed over features and tokens
        self.mean: Tensor | None = None
        self.vectors: Tensor | None = None
        self.values: Tensor | None = None
        self.cosines: Tensor | None = None
        self.waiting: tuple[Tensor, ...] = ()

    @classmethod
    def settled(cls, statistics: Mapping[str, InputPCA]) -> set[str]:
        """Sites whose components that are needed have settled, given the statistics of all sites."""
        if any(one.vectors is None or one.needed is None for one in statistics.values()):
            return {site for site, one in statistics.items() if one.converged}
        rule = next(iter(statistics.values())).needed
        assert rule is not None
        budget = sum(one.rank for one in statistics.values())
        counts = rule({site: one.ratios for site, one in statistics.items()}, budget)
        most: dict[int, int] = {}  # sites may share one statistic
        for site, one in statistics.items():
            most[id(one)] = max(most.get(id(one), 0), counts[site])
        return {site for site, one in statistics.items() if one.has_settled(most[id(one)])}

    @property
    def converged(self) -> bool:
        return self.has_settled(self.components)

    def has_settled(self, leading: int) -> bool:
        """Whether the first `leading` components have settled."""
        return self.cosines is not None and bool((self.cosines[:leading] >= self.tau).all())

    @property
    def ratios(self) -> Tensor:
        """Explained-variance ratios of the components, (k,) on the CPU."""
        assert self.values is not None
        return self.values.square().double().cpu() / self.variance

    @torch.no_grad()
    def update(self, x: Tensor, dy: Tensor | None, tokens: Tokens) -> None:
        rows = x[tokens.answers if self.tokens == "answers" else tokens.real].float()
        self.components = min(self.components, x.shape[1])
        self.waiting = (*self.waiting, rows)
        if sum(part.shape[0] for part in self.waiting) >= self.components:
            self._fit(torch.cat(self.waiting))
            self.waiting = ()

    def result(self) -> Tensor:
        if self.vectors is None or self.values is None:
            seen = sum(part.shape[0] for part in self.waiting)
            raise ValueError(
                f"calibration gave it {seen} tokens, fewer than its {self.components} components"
            )
        cosines = torch.zeros_like(self.values) if self.cosines is None else self.cosines
        columns = torch.stack([self.values, self.ratios.to(self.values), cosines], dim=1)
        return torch.cat([self.vectors, columns], dim=1).float()

    def _fit(self, X: Tensor) -> None:
        """Take the rows X (t, in)."""
        before, k = self.vectors, self.components
        stacked = self._stacked(X)
        if self.niter is None:
            _, S, V = torch.linalg.svd(stacked, full_matrices=False)
        else:
            with torch.random.fork_rng(devices=[X.device] if X.is_cuda else []):
                seed_generators(self.seed)
                _, S, columns = torch.svd_lowrank(stacked, min(2 * k, *stacked.shape), self.niter)
            V = columns.mT
        V, S = V[:k], S[:k]
        largest = V.gather(1, V.abs().argmax(1, keepdim=True))
        self.vectors, self.values = V * largest.sign(), S
        if before is not None:
            self.cosines = F.cosine_similarity(self.vectors, before.to(V))

    def _stacked(self, X: Tensor) -> Tensor:
        """The rows whose SVD is the new state, float64 from the second time on; takes X into count, mean, variance."""
        t, mean = X.shape[0], X.mean(0, dtype=torch.float64)
        centred = (X - mean).float()
        self.variance += centred.double().square().sum().item()
        if self.mean is None or self.vectors is None or self.values is None:
            self.count, self.mean = t, mean
            return centred
        n, shift = self.count, self.mean - mean
        self.variance += n * t / (n + t) * shift.square().sum().item()
        self.count, self.mean = n + t, (n * self.mean + t * mean) / (n + t)
        correction = (n * t / (n + t)) ** 0.5 * shift
        return torch.cat([self.values[:, None] * self.vectors, centred, correction[None]])
