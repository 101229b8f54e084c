"""Hyper-convolution: a volume (N, H, W) is convolved over each two of its three axes, so that all three may change."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn

Shape = tuple[int, int, int]


class HyperConvolution(nn.Module):
    """One stage, (B, N, H, W) -> (B, N', H', W').

        y = (first(u) + tanh(second(u)) + b) / 3,  u = layer norm(x) over (H, W)
        first: W -> W' over the plane (H, N), then H -> H' over (N, W');  second: H -> H' over (W, N), then W -> W'
        stage(x) = conv(y), N -> N' over the plane (H', W')

    Every convolution has square kernels and keeps the size of its plane; those of first and second have no bias.
    """

    def __init__(self, before: Shape, after: Shape, kernel: int) -> None:
        super().__init__()
        (length, height, width), (new_length, new_height, new_width) = before, after
        self.norm = nn.LayerNorm([height, width])
        self.first_width = nn.Conv2d(width, new_width, kernel, padding="same", bias=False)
        self.first_height = nn.Conv2d(height, new_height, kernel, padding="same", bias=False)
        self.second_height = nn.Conv2d(height, new_height, kernel, padding="same", bias=False)
        self.second_width = nn.Conv2d(width, new_width, kernel, padding="same", bias=False)
        bound = 1 / (new_height * new_width)
        self.bias = nn.Parameter(torch.empty(new_height, new_width).uniform_(-bound, bound))
        self.along = nn.Conv2d(length, new_length, kernel, padding="same")

    def forward(self, x: Tensor) -> Tensor:
        u = self.norm(x)
        y = (self._first(u) + self._second(u) + self.bias) / 3
        found: Tensor = self.along(y)
        return found

    def _first(self, u: Tensor) -> Tensor:
        widened = self.first_width(u.permute(0, 3, 2, 1))  # (B, W', H, N)
        found: Tensor = self.first_height(widened.permute(0, 2, 3, 1))  # (B, H', N, W')
        return found.permute(0, 2, 1, 3)

    def _second(self, u: Tensor) -> Tensor:
        heightened = self.second_height(u.permute(0, 2, 1, 3))  # (B, H', N, W)
        found: Tensor = self.second_width(heightened.permute(0, 3, 1, 2))  # (B, W', H', N)
        return found.permute(0, 3, 2, 1).tanh()


class HyperDecoder(nn.Module):
    """Stage after stage from the first shape to the last; one that changes no shape is added to its input."""

    def __init__(self, shapes: Sequence[Shape], kernel: int) -> None:
        super().__init__()
        self.stages = nn.ModuleList(
            HyperConvolution(before, after, kernel) for before, after in pairwise(shapes)
        )

    def forward(self, x: Tensor) -> Tensor:
        for stage in self.stages:
            y = stage(x)
            x = x + y if y.shape == x.shape else y
        return x


def between(first: Shape, last: Shape, stages: int) -> list[Shape]:
    """The shapes from first to last, every side changing by one ratio a stage."""
    return [
        tuple(round(a * (b / a) ** (k / stages)) for a, b in zip(first, last, strict=True))
        for k in range(stages + 1)
    ]
