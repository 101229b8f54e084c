"""A light head on frozen states: what a linear map of them knows of the answers, by the number of training rows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lrft.api.planning.power_law import Curve, fit
from lrft.core import stop
from lrft.registry.errors import DataError

HALVINGS = 5  # sizes of the training rows: all of those measured, half of them, ...
DRAWS = 4  # of each size below all
FEWEST = 64  # training rows
STRENGTHS = [10.0**k for k in range(-6, 5)]  # of the ridge, times the mean square of the states


@dataclass(frozen=True)
class Learning:
    """How often held-out rows are right by the number of training rows.

    Attributes:
        sizes: rows that heads were fitted to, ascending.
        right: (held-out rows, sizes), the share of the draws in which the row is right.
    """

    sizes: Sequence[int]
    right: Tensor

    def at(self, total: int, rows: Tensor | None = None) -> float:
        """Accuracy of a head fitted to so many rows, by 1 - (E + A m^-alpha); of the sizes' own as it was measured.

        Args:
            rows: those of the held-out rows that count, with repetitions; by default each once.
        """
        right = self.right if rows is None else self.right[rows]
        means: list[float] = right.mean(0).tolist()
        if total == self.sizes[-1]:
            return means[-1]
        return _clipped(self._curve(self.sizes, means).at(total))

    def tried(self) -> float:
        """What all sizes but the largest say of the accuracy at that."""
        means: list[float] = self.right.mean(0).tolist()
        return _clipped(self._curve(self.sizes[:-1], means[:-1]).at(self.sizes[-1]))

    def _curve(self, sizes: Sequence[int], means: Sequence[float]) -> Curve:
        return fit([float(size) for size in sizes], [1 - one for one in means])


def learn(train: Tensor, gold: Tensor, test: Tensor, test_gold: Tensor, classes: int, seed: int) -> Learning:
    """Fit heads to states (rows, d) of 64 training rows or more, in five sizes, and ask them about the held-out ones.

    Raises:
        DataError: there are fewer.
    """
    count = len(train)
    if count < FEWEST:
        raise DataError(f"data.train: {count} rows can be looked at, and a head's curve takes {FEWEST}")
    draw = torch.Generator().manual_seed(seed)
    sizes = [count >> k for k in reversed(range(HALVINGS))]
    columns = []
    for size in sizes:
        found = []
        for _ in range(DRAWS if size < count else 1):
            stop.poll()
            rows = torch.randperm(count, generator=draw)[:size]
            said = predict_classes(train[rows], gold[rows], test, classes)
            found.append((said == test_gold).double())
        columns.append(torch.stack(found).mean(0))
    return Learning(sizes, torch.stack(columns, 1))


def predict_classes(train: Tensor, gold: Tensor, test: Tensor, classes: int) -> Tensor:
    """The classes of `test` by ridge regression on one-hot classes, (rows, d), (rows,), (n, d) -> (n,).

    States are standardised by the training rows'; the strength is that of the least leave-one-out error, which has the
    closed form (y - H y) / (1 - h), H the hat matrix and h its diagonal.
    """
    mean, deviation = train.double().mean(0), train.double().std(0, correction=0).clamp_min(1e-6)
    x, z = (train.double() - mean) / deviation, (test.double() - mean) / deviation
    y = torch.nn.functional.one_hot(gold, classes).double()
    centre = y.mean(0)
    u, s, vh = torch.linalg.svd(x, full_matrices=False)
    target, square = u.T @ (y - centre), s * s
    best, weights = torch.inf, torch.zeros_like(target)
    for strength in STRENGTHS:
        shrink = square / (square + strength * square.mean())
        hat = 1 / len(x) + (u * u) @ shrink
        left = (y - centre - u @ (shrink[:, None] * target)) / (1 - hat).clamp_min(1e-6)[:, None]
        error = float((left * left).mean())
        if error < best:
            best, weights = error, (shrink / s.clamp_min(1e-12))[:, None] * target
    found: Tensor = (z @ vh.T @ weights + centre).argmax(1)
    return found


def _clipped(error: float) -> float:
    return 1 - min(max(error, 0.0), 1.0)
