"""What a row says of its label -> the number that is learnt."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence

from lrft.registry.errors import DataError
from lrft.registry.json import Json

NUMBER = re.compile(r"[0-9]{1,9}")


def label_of(value: Json, labels: Sequence[str]) -> float | None:
    """The number of the class, or with a single label the number itself; None of a row that gives none.

    A class may be given by its name or, as a whole number, by its place from 0 on; where a label's own name is such a
    number, numbers are names. A file that knows no numbers gives them as text.

    Raises:
        DataError: it is none of the labels, or no finite number; or there are no labels.
    """
    if value is None:
        return None
    if not labels:
        raise DataError("the row gives a label, and no head learns one; write model.head: [LABEL, ...]")
    return _number(value, labels[0]) if len(labels) == 1 else float(_class(value, labels))


def _class(value: Json, labels: Sequence[str]) -> int:
    name = str(value).lower() if isinstance(value, bool) else str(value)
    if name in labels:
        return labels.index(name)
    places = not any(label.lstrip("-").isdigit() for label in labels)
    whole = (isinstance(value, int) and not isinstance(value, bool)) or NUMBER.fullmatch(name)
    if places and whole and 0 <= int(name) < len(labels):
        return int(name)
    numbers = f", or a number below {len(labels)}" if places else ""
    raise DataError(f"the label is {value!r}; write one of model.head.labels, {', '.join(labels)}{numbers}")


def _number(value: Json, name: str) -> float:
    try:
        found = float(value) if isinstance(value, int | float | str) and not isinstance(value, bool) else None
    except (ValueError, OverflowError):
        found = None
    if found is None or not math.isfinite(found) or abs(found) > 1e30:
        raise DataError(
            f"the label is {value!r}, and {name}, the one label of model.head, is a number that is learnt; write a "
            "finite one, or give model.head the names of all classes"
        )
    return found


def name_of(label: float, labels: Sequence[str]) -> str:
    """How a label is shown: the class, or the number."""
    return f"{label:g}" if len(labels) == 1 else labels[int(label)]
