"""`Shared`: what the adapters of all sites have in common."""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar, Protocol, TypeVar

from torch import Tensor, nn

S = TypeVar("S", bound="Shared")


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


def kept_apart(shared: Shared | None, kind: type[S], make: Callable[[], Shared | None]) -> tuple[S]:
    """What the adapter of one site shares with the others, or what it makes where it stands alone.

    In a tuple, so that it is no part of the adapter's module: it is saved once.
    """
    part = make() if shared is None else shared
    assert isinstance(part, kind)
    return (part,)
