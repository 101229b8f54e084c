"""Values of YAML 1.2's core schema: which texts are numbers, and which number each is."""

from __future__ import annotations

import re

from lrft.recipe.tree import Scalar

MAX_DIGITS = 300  # beyond any float; longer integers are refused by int() itself at some length

CORE = "tag:yaml.org,2002:"
# YAML 1.2's core schema: 2e-4 is a number, `no` and `on` are text, 010 is ten. Tried in this order.
CORE_SCALARS = {
    CORE + kind: re.compile(rf"(?:{pattern})\Z", re.ASCII)
    for kind, pattern in {
        "null": r"~|null|Null|NULL|",
        "bool": r"true|True|TRUE|false|False|FALSE",
        "int": r"[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+",
        "float": r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)",
    }.items()
}


def construct(tag: str, text: str) -> Scalar:
    """The value of a text under one of the schema's tags.

    Raises:
        ValueError: it is none, or a number of too many digits.
    """
    kind = tag.removeprefix(CORE)
    if kind == "str":
        return text
    if not CORE_SCALARS[tag].match(text):
        raise ValueError(text)
    if kind == "null":
        return None
    if kind == "bool":
        return text.lower() == "true"
    if len(text) > MAX_DIGITS:
        raise ValueError(text)
    if kind == "int":
        return int(text, 0) if text[:2] in ("0o", "0x") else int(text, 10)
    named = text.lower().endswith(("inf", "nan"))
    return float(text.replace(".", "") if named else text)
