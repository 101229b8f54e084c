"""Evenly spaced numbers: a step, an integer zero point, and rounding onto them."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

TINY = 1e-8  # the step of numbers that are all 0
HALF = 2.0**-24  # the smallest that half precision can say


class Grid(NamedTuple):
    """step * (n - zero) for n = 0 ... most; step and zero hold 1 where the last dimension of the numbers is."""

    step: Tensor
    zero: Tensor
    most: int

    @classmethod
    def over(cls, numbers: Tensor, bits: int) -> Grid:
        """From the smallest of each last dimension, or 0, to the largest, or 0: an exact 0 is on it."""
        low, high = numbers.amin(-1, keepdim=True), numbers.amax(-1, keepdim=True)
        return cls.between(low.clamp_max(0), high.clamp_min(0), bits)

    @classmethod
    def between(cls, low: Tensor, high: Tensor, bits: int) -> Grid:
        """From about `low` to about `high`, each a multiple of the step."""
        most = 2**bits - 1
        step = ((high - low) / most).clamp_min(TINY)
        return cls(step, (-low / step).round(), most)

    def in_half(self) -> Grid:
        """The same ends, with the nearest step that half precision can say."""
        step = self.step.half().float().clamp_min(HALF)
        low = -self.zero * self.step
        return Grid(step, (-low / step).round().clamp(0, self.most), self.most)

    def codes(self, numbers: Tensor) -> Tensor:
        """The nearest n, cut off at both ends."""
        return ((numbers / self.step).round() + self.zero).clamp(0, self.most)

    def decoded(self, codes: Tensor) -> Tensor:
        """The numbers of some n."""
        return (codes - self.zero) * self.step

    def nearest(self, numbers: Tensor) -> Tensor:
        """The numbers rounded onto the grid."""
        return self.decoded(self.codes(numbers))


def rounded_rows(numbers: Tensor, bits: int | None, clip: float = 1.0) -> Tensor:
    """Every last dimension on a grid of its own, from its smallest to its largest number, both times `clip`.

    Args:
        bits: None leaves the numbers as they are.
    """
    if bits is None:
        return numbers
    low, high = numbers.amin(-1, keepdim=True) * clip, numbers.amax(-1, keepdim=True) * clip
    return Grid.between(low, high, bits).nearest(numbers)
