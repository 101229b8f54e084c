"""What a range test says of the learning rate: where the loss falls fastest, and how far that is from blowing up."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TypedDict

WINDOWS = 6  # that a test is long: of the usual six decades one each, about as wide as a fall is
SURE = 4.0  # standard errors that a fall has to be steeper than; noise alone is so once in some hundred tests


class Choice(TypedDict):
    """A rate, and what it follows from; null where there is none.

    steepest: the rate at which the loss falls fastest.
    blow_up: the rate at which it had blown up.
    suggested: the lower one of `steepest` and a tenth of `blow_up`, to two digits.
    why: in a sentence.
    """

    steepest: float | None
    blow_up: float | None
    suggested: float | None
    why: str


def choose_rate(rates: Sequence[float], losses: Sequence[float], steps: int, blown: bool) -> Choice:
    """The rate to train at, from the losses at rising rates.

    Args:
        rates, losses: of the steps that were made, no more than `steps`.
        steps: that the test has, which decide how many are looked at together.
        blown: whether the loss had blown up at the last rate.
    """
    half = half_window(steps)
    end = min(range(len(losses)), key=lambda i: means(losses, half)[i]) + half + 1 if losses else 0
    slopes, error = _slopes(losses[:end], half)
    blow_up = rates[-1] if blown else None
    if not slopes or min(slopes) >= -SURE * error:
        before = f" before it blew up at {blow_up:.2g}" if blow_up is not None else f" up to {rates[-1]:.2g}"
        why = f"the loss never fell by more than its noise{before}; give more --steps, or a larger batch"
        return {"steepest": None, "blow_up": blow_up, "suggested": None, "why": why}
    steepest = rates[slopes.index(min(slopes)) + half]
    if blow_up is None:
        why = f"the loss falls fastest at {steepest:.2g}, and had not blown up by {rates[-1]:.2g}"
        return {"steepest": steepest, "blow_up": None, "suggested": two_digits(steepest), "why": why}
    below = blow_up / 10
    lower = "a decade below that is lower" if below < steepest else "that is lower than a decade below"
    why = f"the loss falls fastest at {steepest:.2g} and blows up at {blow_up:.2g}; {lower}"
    suggested = two_digits(min(steepest, below))
    return {"steepest": steepest, "blow_up": blow_up, "suggested": suggested, "why": why}


def half_window(steps: int) -> int:
    """How many losses on either side of one are looked at with it."""
    return max(2, steps // WINDOWS // 2)


def means(losses: Sequence[float], half: int) -> list[float]:
    """The mean of every loss with up to `half` neighbours on either side, as many on one as on the other."""
    found = []
    for place in range(len(losses)):
        reach = min(half, place, len(losses) - 1 - place)
        part = losses[place - reach : place + reach + 1]
        found.append(sum(part) / len(part))
    return found


def two_digits(rate: float) -> float:
    """The rate to two significant digits."""
    return float(f"{rate:.2g}")


def _slopes(losses: Sequence[float], half: int) -> tuple[list[float], float]:
    """The slope of the line through each 2 half + 1 losses by least squares, a step, and the error of such a slope."""
    places = range(-half, half + 1)
    squares = sum(place * place for place in places)
    slopes, residuals = [], 0.0
    for middle in range(half, len(losses) - half):
        part = losses[middle - half : middle + half + 1]
        mean = sum(part) / len(part)
        slope = sum(place * loss for place, loss in zip(places, part, strict=True)) / squares
        slopes.append(slope)
        residuals += sum((loss - mean - slope * place) ** 2 for place, loss in zip(places, part, strict=True))
    if not slopes:
        return [], 0.0
    variance = residuals / (len(slopes) * (len(places) - 2))
    return slopes, math.sqrt(variance / squares)
