"""How far a gradient is stretched: by what Adam did to its projection, and no more than a little further each step."""

from __future__ import annotations

import torch
from torch import Tensor

from lrft.methods.optim._torch import State


def adam_stretch(direction: Tensor, low: Tensor, axis: int | None) -> Tensor:
    """||N|| / (||R|| + 1e-8): along one axis, which is kept with size 1, or of the whole matrices; float32."""

    def norm(of: Tensor) -> Tensor:
        found: Tensor = torch.linalg.vector_norm(of, dim=axis, keepdim=axis is not None, dtype=torch.float32)
        return found

    return norm(direction) / (norm(low) + 1e-8)


def limit_growth(update: Tensor, state: State, gamma: float) -> None:
    """Shrink `update` in place where its norm exceeds gamma times that of the step before, kept in `state`.

    The first step is not limited. The norm is a float32 number on the device, so that nothing waits for it.
    """
    norm = torch.linalg.vector_norm(update, dtype=torch.float32)
    if "norm" in state:
        excess = (norm / (state["norm"] + 1e-8)).clamp(min=gamma) / gamma
        update.div_(excess)
        norm = norm / excess
    state["norm"] = norm
