"""`Renewing`: an adapter that keeps, over restarts, what it took from the first weight it was put on."""

from __future__ import annotations

from torch import Tensor


class Renewing:
    """An adapter whose `start` looks at the weight once. Where a task ends, `renew` lets it look again."""

    def renew(self, weight: Tensor) -> None:
        """Begin on a weight (out, in) that the tasks before have changed, as `start` does on the pretrained one."""
        raise NotImplementedError(f"{type(self).__name__} declares no way to begin on a weight of later")
