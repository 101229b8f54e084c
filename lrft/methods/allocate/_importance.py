"""Importance with its uncertainty: two moving averages of a sensitivity."""

from __future__ import annotations

from typing import TypedDict

import torch
from torch import Tensor

from lrft.registry.errors import CheckpointError


class ImportanceState(TypedDict):
    """The two averages, by name."""

    average: dict[str, Tensor]
    uncertainty: dict[str, Tensor]


class Importance:
    """Ibar = b1 Ibar + (1 - b1) I and U = b2 U + (1 - b2) |I - Ibar| with the new Ibar; the score is Ibar * U.

    Both start at 0. Elementwise, under names; call `prepare` before the first update.
    """

    def __init__(self, beta1: float, beta2: float) -> None:
        self.beta1, self.beta2 = beta1, beta2
        self.average: dict[str, Tensor] = {}
        self.uncertainty: dict[str, Tensor] = {}

    @torch.no_grad()
    def prepare(self, shapes: dict[str, Tensor]) -> None:
        """Averages of 0 for tensors like these, or those of a checkpoint moved beside them.

        Raises:
            CheckpointError: one of a checkpoint's is not like what it is of.
        """
        for held in (self.average, self.uncertainty):
            for name, like in shapes.items():
                if name not in held:
                    held[name] = torch.zeros_like(like)
                    continue
                found = held[name]
                if found.shape != like.shape or found.dtype != like.dtype or not found.isfinite().all():
                    raise CheckpointError(
                        f"the checkpoint's importance of {name} cannot be of {tuple(like.shape)} numbers"
                    )
                held[name] = found.to(like.device)

    @torch.no_grad()
    def update(self, sensitivity: dict[str, Tensor]) -> None:
        """Take one step's I, by name; names that are left out keep their averages."""
        if not sensitivity:
            return
        now = list(sensitivity.values())
        average = [self.average[name] for name in sensitivity]
        uncertainty = [self.uncertainty[name] for name in sensitivity]
        torch._foreach_mul_(average, self.beta1)
        torch._foreach_add_(average, now, alpha=1 - self.beta1)
        deviation = torch._foreach_abs(torch._foreach_sub(now, average))
        torch._foreach_mul_(uncertainty, self.beta2)
        torch._foreach_add_(uncertainty, deviation, alpha=1 - self.beta2)

    def score(self, name: str) -> Tensor:
        """Ibar * U, elementwise."""
        return self.average[name] * self.uncertainty[name]

    def state_dict(self) -> ImportanceState:
        """The two averages by name."""
        return {"average": dict(self.average), "uncertainty": dict(self.uncertainty)}

    def load_state_dict(self, state: ImportanceState) -> None:
        """Take them back, as copies of their own."""
        self.average = {name: tensor.clone() for name, tensor in state["average"].items()}
        self.uncertainty = {name: tensor.clone() for name, tensor in state["uncertainty"].items()}
