"""`Settling`: adapters that change what an optimizer has just moved, whichever optimizer it is."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor


class Settling:
    """What an adapter is besides, that takes a step of its own after every update: toward zeros, or back into bounds.

    An update that was left out, for a gradient beyond float16, has none.
    """

    def settle(self, rates: Mapping[Tensor, float]) -> None:
        """Change parameters in place, without a gradient.

        Args:
            rates: parameter -> the learning rate of the update; what does not train is not there.
        """
        raise NotImplementedError(f"{type(self).__name__} declares no step of its own")


@torch.no_grad()
def settle(parts: Iterable[Settling], optimizer: torch.optim.Optimizer) -> None:
    """The step of every one of `parts`, at the rates that `optimizer` has just moved with."""
    rates: dict[Tensor, float] = {}
    for part in parts:
        rates = rates or {p: float(group["lr"]) for group in optimizer.param_groups for p in group["params"]}
        part.settle(rates)
