"""Names for the places where adapters attach and for the parameters they bring."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from torch import nn


@dataclass(frozen=True)
class Site:
    """One place an adapter attaches to: a linear map of the base model, seen as (out, in)."""

    name: str
    in_features: int
    out_features: int
    has_bias: bool = False
    kind: str = "linear"


@dataclass(frozen=True)
class ParamInfo:
    """A trainable parameter with what an optimizer may want to know of it.

    `role` says what the tensor is (`lora_A`, `lora_B`, `magnitude`, `matrix`, `embedding`, `vector`, `router`);
    `site` is the adapter's site, empty for base parameters.
    """

    name: str
    param: nn.Parameter
    role: str
    site: str = ""


def count(parameters: Iterable[nn.Parameter]) -> int:
    """How many numbers these parameters hold."""
    return sum(parameter.numel() for parameter in parameters)
