"""Freed memory, handed back to the system."""

from __future__ import annotations

import ctypes
import sys


def give_back() -> None:
    """Return pages that fell free, which glibc keeps: loading leaves many. Other C libraries are let alone."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform == "linux" else None
    if trim is not None:
        trim(0)
