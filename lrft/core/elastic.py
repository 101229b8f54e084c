"""`Elastic`: adapters built at their full capacity, whose rank components are hidden and shown while they train.

Growing is showing and shrinking is hiding: no parameter is made or dropped in the middle of a run, so optimizers,
checkpoints and compiled code are undisturbed.
"""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from lrft.core.adapter import Additive, Factors, LowRank, PeftForm
from lrft.core.peft import lora_keys
from lrft.registry.json import Json


class Elastic(LowRank):
    """delta(W) = s * sum over shown k of B[:, k] E[k] A[k, :].

    A subclass has parameters A (capacity, in) and B (out, capacity), and E (capacity) or none (then 1), makes the
    buffer `mask` (capacity) of ones with `super().reset()`, and multiplies it in wherever E is used. The trait is
    `elastic`. Hiding is by the mask alone; values stay, so that a component can come back.

    Attributes:
        mask: (capacity,) float32, 1 where shown; saved with the adapter.
    """

    mask: Tensor

    @property
    def capacity(self) -> int:
        """Rank components there are, shown or not."""
        return int(self.mask.shape[0])

    def components(self) -> tuple[Tensor, Tensor | None, Tensor]:
        """A (capacity, in), E (capacity,) or None, and B (out, capacity): the parameters themselves."""
        E = getattr(self, "E", None)
        return self.get_parameter("A"), E, self.get_parameter("B")

    @torch.no_grad()
    def show(self, shown: Tensor) -> None:
        """Show the components where `shown` (capacity,) is true and hide the others, in place."""
        self.mask.copy_(shown)

    def gates(self) -> Tensor:
        """(capacity,): E times the mask, or the mask alone; with a graph."""
        E = self.components()[1]
        return self.mask if E is None else E * self.mask

    @torch.no_grad()
    def factors(self, start: Additive | None = None) -> Factors:
        """The shown components whose gate is not 0: A' = A[k] and B' = s B[:, k] E[k]."""
        assert start is None, f"{type(self).__name__} has no form with a start"
        A, _, B = self.components()
        gates = self.gates()
        live = gates.nonzero().flatten()
        return A[live].float(), self.scaling * B[:, live].float() * gates[live]


class _Ranked(Protocol):
    @property
    def rank(self) -> int: ...


def _keys(config: _Ranked, with_start: bool) -> dict[str, Json]:
    return lora_keys(config.rank, float(config.rank))


def _keys_here(adapter: Elastic) -> dict[str, Json]:
    """A plain LoRA of the rank that is left, with alpha such that its scale is 1 (the gates hold the rest)."""
    rank = max(1, adapter.factors()[0].shape[0])
    return lora_keys(rank, float(rank))


def _tensors(adapter: Elastic, start: Additive | None) -> dict[str, Tensor]:
    """A and B of that LoRA; a site with nothing left keeps one component of zeros, which PEFT can hold."""
    A, B = adapter.factors(start)
    if A.shape[0] == 0:
        A, B = A.new_zeros(1, adapter.site.in_features), B.new_zeros(adapter.site.out_features, 1)
    return {"A": A, "B": B}


ELASTIC_FORM = PeftForm(_keys, _tensors, keys_here=_keys_here)
