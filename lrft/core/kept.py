"""`Keeping`: an adapter of keys and values that changes what attention keeps of a token, as the cache has it."""

from __future__ import annotations

from torch import Tensor


class Keeping:
    """An adapter of the layers that keys and values come from. `lrft.model.kept` calls `kept` where they are cached.

    Keys are changed behind their rotation to a position, so that training attends to what generation reads back.
    """

    @property
    def keeps(self) -> bool:
        """Whether its settings change anything that is kept."""
        raise NotImplementedError(f"{type(self).__name__} does not say whether it changes what is kept")

    def kept(self, part: Tensor) -> Tensor:
        """Keys or values (B, heads, L, head) as they are kept, in their dtype; each head of a token by itself."""
        raise NotImplementedError(f"{type(self).__name__} declares nothing that is kept")
