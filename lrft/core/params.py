"""Names for the places where adapters attach and for the parameters they bring."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from torch import Tensor, nn


@dataclass(frozen=True)
class Site:
    """One place an adapter attaches to: a linear map of the base model, seen as (out, in).

    With kind `mlp` it is a whole feed-forward block: `in_features` and `out_features` are the hidden size,
    `inner_features` is the width between.
    """

    name: str
    in_features: int
    out_features: int
    has_bias: bool = False
    kind: str = "linear"
    inner_features: int = 0


@dataclass(frozen=True)
class ParamInfo:
    """A trainable parameter with what an optimizer may want to know of it.

    Attributes:
        role: what the tensor is. Of adapters: `lora_A`, `lora_B`, `core` (between A and B), `magnitude`, `router`.
            Of the base model: `matrix` (a linear layer of a block), `embedding`, `head`, `vector` (norms, biases).
        site: the adapter's site, empty for base parameters.
        scaling: s of the low-rank term s B A that the parameter is a factor of.
        partner: the other factor of that term, trained or frozen: A of a B, B of an A.
        block: path of the decoder layer the parameter stands in (`model.layers.3`), empty outside of them.
    """

    name: str
    param: nn.Parameter
    role: str
    site: str = ""
    scaling: float = 1.0
    partner: Tensor | None = None
    block: str = ""


def count(parameters: Iterable[nn.Parameter]) -> int:
    """How many numbers these parameters hold."""
    return sum(parameter.numel() for parameter in parameters)
