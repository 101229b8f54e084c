"""`Privacy`: how the gradients of a private step are bounded and hidden, and the secret that both draws follow from."""

from __future__ import annotations

import secrets
from dataclasses import dataclass
from hashlib import shake_256

import torch
from torch import Tensor

BITS = 63  # of a secret, which a checkpoint keeps as a plain integer
WORDS, BEFORE = 624, 24  # of the state of torch's CPU generator, each in 8 bytes, and bytes in front of them


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
        """A CPU generator for one purpose in one step; `seed` tells apart the clients of a federation.

        All of its state follows from the secret. Of a seed torch takes 32 bits, and who tries all of these finds the
        noise that was drawn by one of them.
        """
        found = self._digest(purpose, seed, step, b"", 8 + 4 * WORDS)
        made = torch.Generator().manual_seed(int.from_bytes(found[:8], "little"))
        state: Tensor = made.get_state()
        words = state[BEFORE : BEFORE + 8 * WORDS].view(torch.int64)
        assert int(words[0]) == made.initial_seed() % 2**32, "the state begins elsewhere"
        words.copy_(torch.frombuffer(bytearray(found[8:]), dtype=torch.int32).long() % 2**32)
        made.set_state(state)
        return made

    def seed(self, purpose: str, seed: int, step: int, about: bytes) -> int:
        """A seed for one purpose and what it is `about` in one step, for draws that hide nothing; 63 bits."""
        return int.from_bytes(self._digest(purpose, seed, step, about, 8), "little") >> 1

    def _digest(self, purpose: str, seed: int, step: int, about: bytes, size: int) -> bytes:
        return shake_256(f"{self.number} {purpose} {seed} {step} ".encode() + about).digest(size)


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
