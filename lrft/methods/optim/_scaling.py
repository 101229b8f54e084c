"""How far a gradient is stretched: by what Adam did to its projection, and no more than a little further each step."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def adam_stretch(direction: Tensor, low: Tensor, axis: int | None) -> Tensor:
    """||N|| / (||R|| + 1e-8): along one axis, which is kept with size 1, or of the whole matrices; float32."""

    def norm(of: Tensor) -> Tensor:
        return torch.linalg.vector_norm(of, dim=axis, keepdim=axis is not None, dtype=torch.float32)

    return norm(direction) / (norm(low) + 1e-8)


def limit_growth(update: Tensor, state: dict[str, Any], gamma: float) -> None:
    """Shrink `update` in place where its norm exceeds gamma times that of the step before, kept in `state`.

    The first step is not limited. The norm is a float32 number on the device, so that nothing waits for it.
    """
    norm = torch.linalg.vector_norm(update, dtype=torch.float32)
    if "norm" in state:
        excess = (norm / (state["norm"] + 1e-8)).clamp(min=gamma) / gamma
        update.div_(excess)
        norm = norm / excess
    state["norm"] = norm
