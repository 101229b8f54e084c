"""`Routed`: adapters that send tokens to parts of themselves, for whoever watches how evenly."""

from __future__ import annotations

from torch import Tensor


class Routed:
    """What an adapter is besides, that has experts and decides which of them a token uses: trait `routed`.

    Class attributes:
        skipped: the experts that the first steps' tokens chose may be others in each, so that no A of one is reached
            after its B has left 0; one whose tokens reach everything says False.
    """

    skipped: bool = True

    def take_load(self) -> dict[str, Tensor]:
        """What each expert got of the real tokens since this was asked last, (E,) by router; "" is an only one.

        The first call begins the count, and says nothing of before. Asked once a step, after it.
        """
        raise NotImplementedError(f"{type(self).__name__} does not say what its experts got")
