"""Drawing the next token: a pure function of the logits, the seed, the row and the step."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lrft.registry.errors import UsageError
from lrft.registry.section import LARGEST, SMALLEST


@dataclass(frozen=True)
class Sampling:
    """How the next token is chosen.

    Attributes:
        temperature: logits are divided by it; 0 takes the likeliest token.
        top_p: draw from the fewest tokens, likeliest first, that hold so much probability.
        top_k: draw from so many likeliest tokens, before `top_p`; 0 is all.
        seed: another seed, other draws.
    """

    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    seed: int = 0

    @property
    def greedy(self) -> bool:
        """Whether nothing is drawn."""
        return self.temperature == 0

    def check(self) -> None:
        """Refuse what means nothing, or would have no effect.

        Raises:
            UsageError: names the setting.
        """
        # Logits divided by less than SMALLEST may be infinite, and the token then none that was likely.
        if self.temperature != 0 and not SMALLEST <= self.temperature <= LARGEST:
            raise UsageError(
                f"temperature {self.temperature}: give 0 for the likeliest token, or {SMALLEST:g} to {LARGEST:g}"
            )
        if not 0 < self.top_p <= 1:
            raise UsageError(f"top_p {self.top_p}: is a share of probability, above 0 and at most 1")
        if self.top_k < 0:
            raise UsageError(f"top_k {self.top_k}: is a number of tokens; 0 is all of them")
        narrowed = "top_p" if self.top_p < 1 else "top_k" if self.top_k else None
        if self.greedy and narrowed:
            raise UsageError(
                f"{narrowed} {getattr(self, narrowed)}: nothing is drawn at temperature 0; add a temperature, such as 1"
            )


def check_new_tokens(most: int, name: str = "--max-new-tokens") -> None:
    """Refuse an answer of no token; `name` is what was given.

    Raises:
        UsageError: there would be none.
    """
    if most < 1:
        raise UsageError(f"{name} {most}: at least one token has to be generated")


class Sampler:
    """Leaves of the logits of a step only the drawn token, so that the likeliest one is it.

    Args:
        rows: number of every row of the batch, which with the seed decides its draws.
        start: tokens of the padded prompts; what follows are steps.
    """

    def __init__(self, sampling: Sampling, rows: Sequence[int], start: int) -> None:
        self.sampling, self.rows, self.start = sampling, rows, start

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """(B, L), (B, V) -> (B, V)."""
        step = input_ids.shape[1] - self.start
        drawn = [uniform(self.sampling.seed, row, step) for row in self.rows]
        uniforms = torch.tensor(drawn, dtype=torch.float64, device=scores.device)
        chosen = choose(scores, uniforms, self.sampling)
        return torch.full_like(scores, -torch.inf).scatter(1, chosen[:, None], 0.0)


def uniform(seed: int, row: int, step: int) -> float:
    """A number in [0, 1), the same on every machine."""
    digest = hashlib.blake2b(f"{seed} {row} {step}".encode(), digest_size=8).digest()
    return (int.from_bytes(digest, "big") >> 11) / 2**53


def choose(logits: Tensor, uniforms: Tensor, sampling: Sampling) -> Tensor:
    """The token at which the cumulative probability, likeliest first, passes each row's uniform number.

    Args:
        logits: (B, V) of any float type.
        uniforms: (B) float64 in [0, 1).

    Returns:
        (B) token ids.
    """
    scaled, order = (logits.double() / sampling.temperature).sort(dim=-1, descending=True, stable=True)
    if sampling.top_k:
        scaled, order = scaled[:, : sampling.top_k], order[:, : sampling.top_k]
    reached = scaled.softmax(-1).cumsum(-1)
    if sampling.top_p < 1:
        before = reached - scaled.softmax(-1)
        kept = (before < sampling.top_p).sum(-1, keepdim=True).clamp_min(1)
    else:
        kept = torch.full_like(order[:, :1], order.shape[1])
    mass = reached.gather(-1, kept - 1)
    place = torch.searchsorted(reached, uniforms[:, None] * mass, right=True)
    return order.gather(-1, torch.minimum(place, kept - 1))[:, 0]
