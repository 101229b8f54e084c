"""Where very much is made that stays, looking through it for cycles is a tenth of the time."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager

RARELY = (
    200_000,
    50,
    10,
)  # objects that are made between two searches of the newest, and how the older ones follow


@contextmanager
def sought_rarely() -> Iterator[None]:
    """Search for cycles seldom; what no cycle holds goes at once, as ever."""
    before = gc.get_threshold()
    gc.set_threshold(*RARELY)
    try:
        yield
    finally:
        gc.set_threshold(*before)
