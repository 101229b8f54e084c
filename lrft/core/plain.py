"""Any value as what JSON knows."""

from __future__ import annotations

import math
from collections.abc import Mapping

from lrft.registry.json import Json


def plain(value: object) -> Json:
    """The value in mappings, lists, text and numbers; numbers that JSON does not have are null.

    Arrays and tensors of any library become numbers or lists of them, anything else its text.
    """
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [plain(item) for item in value]
    if value is None or isinstance(value, bool):
        return value
    if hasattr(value, "tolist"):
        return plain(value.tolist())
    if isinstance(value, int):
        return int(value)
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else None
    return str(value)
