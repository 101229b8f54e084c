"""Everything that trains, as named tensors: read off a model, and written into it."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from lrft.core.aggregate import Tensors
from lrft.core.params import ParamInfo


def read(infos: Sequence[ParamInfo]) -> Tensors:
    """Everything that trains, by name, as it is now."""
    return {info.name: info.param.detach().clone() for info in infos}


@torch.no_grad()
def write(infos: Sequence[ParamInfo], tensors: Tensors) -> None:
    """Set everything that trains, rounded to the dtype that it trains in."""
    for info in infos:
        info.param.copy_(tensors[info.name])
        info.param.grad = None
