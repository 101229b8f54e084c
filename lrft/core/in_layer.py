"""Which layer of a model a path stands in."""

from __future__ import annotations

import re
from typing import NamedTuple

# The first number of a path counts the model's layers; later ones count experts, or parts of a layer.
_FIRST_NUMBER = re.compile(r"((?:.*?\.)?(\d+))(?:\.(.+))?", re.DOTALL)


class InLayer(NamedTuple):
    """A place within a layer.

    Attributes:
        path: of the layer, as `model.layers.3`.
        number: which layer it is, as 3.
        rest: the path within it, as `self_attn.q_proj`; empty for the layer itself.
    """

    path: str
    number: int
    rest: str


def in_layer(name: str) -> InLayer | None:
    """Where a module or a parameter stands; None outside of all layers, as an embedding does."""
    found = _FIRST_NUMBER.fullmatch(name)
    return None if found is None else InLayer(found[1], int(found[2]), found[3] or "")


def layer_of(name: str) -> str:
    """The path of the layer that a site stands in, or its own where there is none."""
    found = in_layer(name)
    return name if found is None else found.path
