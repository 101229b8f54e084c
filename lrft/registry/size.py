"""Sizes as people write them."""

from __future__ import annotations

import re

from lrft.registry.errors import UsageError

UNITS = {"": 1, "B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12}
UNITS |= {"KIB": 2**10, "MIB": 2**20, "GIB": 2**30, "TIB": 2**40}


def parse_size(text: str, option: str) -> int:
    """`24GiB` -> bytes.

    Args:
        option: where it was written, in the message.

    Raises:
        UsageError: it is no size.
    """
    found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([A-Za-z]*)\s*", text)
    unit = "" if found is None else found.group(2).upper()
    unit = {"K": "KIB", "M": "MIB", "G": "GIB", "T": "TIB"}.get(unit, unit)
    if found is None or unit not in UNITS or float(found.group(1)) == 0:
        raise UsageError(f"{option}: {text!r} is no size; write it as 24GiB or 80GB")
    return int(float(found.group(1)) * UNITS[unit])
