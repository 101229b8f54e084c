"""`Routed`: adapters that send tokens to parts of themselves, for whoever watches how evenly."""

from __future__ import annotations

from torch import Tensor


class Routed:
    """What an adapter is besides, that has experts and decides which of them a token uses: trait `routed`."""

    def take_load(self) -> dict[str, Tensor]:
        """What each expert got of the real tokens since this was asked last, (E,) by router; "" is an only one.

        The first call begins the count, and says nothing of before. Asked once a step, after it.
        """
        raise NotImplementedError(f"{type(self).__name__} does not say what its experts got")
