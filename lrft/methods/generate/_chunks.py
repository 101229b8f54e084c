"""Adapters as a sequence of small matrices of one shape, with the statistics of each among its own entries."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from lrft.core.generate import Layout

MARGIN = 2  # rows below and columns beside a piece, for its mean and deviation
MEAN = 8.0  # what a mean is multiplied with, and what is added to the log of a deviation, so that both are about 1
LOG = 1.6
FLOOR = 0.1  # of a deviation within the log


@dataclass(frozen=True)
class Piece:
    """Columns `start` to `end` of a factor; of B, which stands as (out, r), of its transpose."""

    factor: str
    start: int
    end: int


class Chunks:
    """Every factor with r rows (B transposed), cut into pieces of `width` columns, the last as narrow as it is.

    A token is (height, width + 2): a piece normalised by its own mean and deviation, NaN where there is nothing, and in
    the last two rows and columns, again and again, 8 mean and log(0.9 deviation + 0.1) + 1.6.
    """

    def __init__(self, layout: Layout, width: int) -> None:
        self.layout = layout
        self.turned = {name: _turned(name, shape) for name, shape in layout.shapes.items()}
        rank = max(rows for rows, _ in self.turned.values())
        self.shape = (
            rank + rank % 2 + MARGIN,
            width + width % 2 + MARGIN,
        )  # even, as statistics stand in pairs
        self.pieces = [
            Piece(name, start, min(start + width, columns))
            for name, (_, columns) in self.turned.items()
            for start in range(0, columns, width)
        ]

    def __len__(self) -> int:
        return len(self.pieces)

    def tokens(self, vectors: Tensor) -> Tensor:
        """(..., size) -> (..., tokens, height, width), NaN where a token has nothing."""
        factors = _turn(self.layout.split(vectors))
        found = [self._token(factors[one.factor][..., one.start : one.end]) for one in self.pieces]
        return torch.stack(found, dim=-3)

    def vectors(self, tokens: Tensor) -> Tensor:
        """The inverse: (..., tokens, height, width) -> (..., size), by the mean of all copies of a statistic."""
        means, deviations = _statistics(tokens)
        parts: dict[str, list[Tensor]] = {}
        for place, one in enumerate(self.pieces):
            rows, _ = self.turned[one.factor]
            values = tokens[..., place, :rows, : one.end - one.start]
            restored = values * deviations[..., place, None, None] + means[..., place, None, None]
            parts.setdefault(one.factor, []).append(restored)
        return self.layout.joined(_turn({name: torch.cat(some, dim=-1) for name, some in parts.items()}))

    def _token(self, piece: Tensor) -> Tensor:
        height, width = self.shape
        mean = piece.mean(dim=(-2, -1))
        one = piece.shape[-2] * piece.shape[-1] == 1
        deviation = torch.zeros_like(mean) if one else piece.std(dim=(-2, -1))
        divisor = torch.where(deviation > 0, deviation, 1.0)  # of a B that is 0 the token is 0 and not 0 / 0
        token = piece.new_full((*piece.shape[:-2], height, width), torch.nan)
        normal = (piece - mean[..., None, None]) / divisor[..., None, None]
        token[..., : piece.shape[-2], : piece.shape[-1]] = normal
        pair = torch.stack([mean * MEAN, torch.log(deviation * (1 - FLOOR) + FLOOR) + LOG], dim=-1)
        token[..., -MARGIN:, :] = torch.cat([pair] * (width // 2), dim=-1)[..., None, :]
        token[..., :, -MARGIN:] = pair[..., None, :]
        return token


def _statistics(tokens: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and deviation of every piece: two copies along each side, averaged, read, and averaged again."""
    below = tokens[..., -MARGIN:, :].unflatten(-1, (-1, 2)).mean(dim=-2)
    beside = tokens[..., :, -MARGIN:].unflatten(-2, (-1, 2)).mean(dim=-3)
    pairs = (below + beside) / 2
    deviations = ((pairs[..., 1] - LOG).exp() - FLOOR) / (1 - FLOOR)
    return pairs[..., 0].mean(-1) / MEAN, deviations.mean(-1)


def _turn(factors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: one.mT if name.endswith(".B") else one for name, one in factors.items()}


def _turned(name: str, shape: tuple[int, int]) -> tuple[int, int]:
    """Rows and columns as they are cut: the rank first."""
    return (shape[1], shape[0]) if name.endswith(".B") else shape
