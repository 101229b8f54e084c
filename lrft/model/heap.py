"""Memory that nobody uses: freed pages are handed back to the system, and what libraries keep is bounded."""

from __future__ import annotations

import ctypes
import os
import sys

# On a CPU torch multiplies in bfloat16 with a program that oneDNN writes for every shape, a third of a megabyte each;
# two caches keep 1,024 of them by default. Rows that are packed have another length every micro-batch, so a run would
# grow by 0.8 GB and use few of them again. A micro-batch of a model needs about forty.
KEPT = "256"
EVERY = 50  # steps: what lies between the programs that stay would otherwise keep the pages around it
CACHES = ("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "LRU_CACHE_CAPACITY")


def bound_caches() -> None:
    """Let the libraries keep fewer programs, unless the environment says how many. It changes no number.

    They ask once, at their first product; in a process that has multiplied before, nothing changes.
    """
    for name in CACHES:
        os.environ.setdefault(name, KEPT)


def give_back() -> None:
    """Return pages that fell free, which glibc keeps: loading leaves many. Other C libraries are let alone."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform == "linux" else None
    if trim is not None:
        trim(0)
