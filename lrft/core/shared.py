"""`Shared`: what the adapters of all sites have in common."""

from __future__ import annotations

from typing import ClassVar, Protocol

from torch import Tensor, nn


class Hosting(Protocol):
    """A language model around transformers' own."""

    @property
    def hf(self) -> nn.Module:
        """The model of transformers, adapters attached."""


class Shared(nn.Module):
    """What the adapters of all sites share: common bases, a router over whole adapters.

    Its parameters train with the adapters' and are saved beside them under `shared.`.

    Class attributes:
        roles: parameter name -> role.
    """

    roles: ClassVar[dict[str, str]] = {}

    def bind(self, model: Hosting) -> None:
        """Called once when every site has its adapter, with the language model."""

    def peft_tensors(self) -> dict[str, Tensor] | None:
        """PEFT's name -> tensor, or None when PEFT has no such part, and so no form for the adapters either."""
        return None
