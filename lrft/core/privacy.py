"""`Privacy`: how the gradients of a private step are bounded and hidden, and the secret that both draws follow from."""

from __future__ import annotations

import secrets
from dataclasses import dataclass
from hashlib import sha256

import torch

BITS = 63  # of a secret, which a checkpoint keeps as a plain integer


class Secret:
    """What the rows of a step and its noise are drawn from; who knows it can take the noise off again.

    Args:
        number: the secret; None draws one from the system when it is first asked for.
    """

    def __init__(self, number: int | None = None) -> None:
        self._number = number

    @property
    def number(self) -> int:
        """The secret, which a checkpoint keeps so that a resumed run draws the same."""
        if self._number is None:
            self._number = secrets.randbits(BITS)
        return self._number

    @number.setter
    def number(self, value: int) -> None:
        self._number = value

    def generator(self, purpose: str, seed: int, step: int) -> torch.Generator:
        """A CPU generator for one purpose in one step; `seed` tells apart the clients of a federation."""
        digest = sha256(f"{self.number} {purpose} {seed} {step}".encode()).digest()
        return torch.Generator().manual_seed(int.from_bytes(digest[:8], "little"))


@dataclass(frozen=True)
class Privacy:
    """What a private step does with the gradients of its rows.

    Attributes:
        clip: largest L2 norm of the gradient of one row, over all parameters together.
        noise: standard deviation of the noise on every number of their sum, in units of `clip`.
        rows: expected rows of a step, by which the noisy sum is divided.
        rate: with what probability each row is in a step.
        secret: what the noise is drawn from.
    """

    clip: float
    noise: float
    rows: float
    rate: float
    secret: Secret
