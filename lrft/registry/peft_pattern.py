"""The patterns of a foreign adapter_config.json, matched as PEFT matches them, where that cannot take long.

They are regular expressions of a stranger's, and Python's may try every way to divide a name among their parts:
`(a+)+$` on forty letters outlives the machine. So the ways are counted beforehand, by the pattern alone, and a pattern
that has too many is refused.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import Any, TypeVar

from lrft.registry.errors import UsageError

T = TypeVar("T")
LONGEST, LONGEST_NAME, MOST = 1000, 300, 1000  # characters of a pattern and of a name; patterns of a file
WAYS = 10**6  # to divide a name among the parts of a pattern; `.*\.layers\.\d+\..*` has as many as fit
READ: Callable[[str], Any] = re._parser.parse  # type: ignore[attr-defined]


def value_at(patterns: Mapping[str, T] | None, site: str, default: T) -> T:
    """The value of the first pattern that a layer's path ends in, from a dot on.

    Raises:
        UsageError: a pattern is none, or could take long to match.
    """
    if patterns and len(patterns) > MOST:
        raise UsageError(f"adapter_config.json: {len(patterns):,} patterns; at most {MOST:,} are matched")
    for pattern, value in (patterns or {}).items():
        if _ends_as(site, pattern):
            return value
    return default


def _ends_as(site: str, pattern: str) -> bool:
    compiled = _compiled(pattern)
    if len(site) > LONGEST_NAME:
        raise UsageError(
            f"{site[:60]}...: the layer's name has {len(site):,} characters; at most {LONGEST_NAME}"
        )
    dots = (place + 1 for place, letter in enumerate(site) if letter == ".")
    return any(compiled.fullmatch(site, start) for start in (0, *dots))


@lru_cache(maxsize=MOST)
def _compiled(pattern: str) -> re.Pattern[str]:
    shown = pattern if len(pattern) <= 60 else f"{pattern[:60]}..."
    remedy = "write the names of layers, with .* at most twice"
    if len(pattern) > LONGEST:
        raise UsageError(f"adapter_config.json: the pattern {shown!r} is too long to be matched; {remedy}")
    try:
        ways = _ways(READ(pattern))
        compiled = re.compile(pattern)
    except (re.error, RecursionError, OverflowError) as error:
        raise UsageError(f"adapter_config.json: {shown!r} is no pattern ({error}); {remedy}") from None
    if ways > WAYS:
        raise UsageError(
            f"adapter_config.json: the pattern {shown!r} could take very long to match; {remedy}"
        )
    return compiled


def _ways(parts: Any) -> float:
    """In how many ways a name can be divided among the parts of a pattern, at most."""
    found = 1.0
    for kind, held in parts:
        found *= _ways_of(str(kind), held)
        if found > WAYS:
            return float("inf")
    return found


def _ways_of(kind: str, held: Any) -> float:
    if kind in ("LITERAL", "NOT_LITERAL", "ANY", "IN", "AT"):
        return 1
    if kind == "SUBPATTERN":
        return _ways(held[-1])
    if kind == "BRANCH":
        return sum(_ways(one) for one in held[1])
    if kind in ("MAX_REPEAT", "MIN_REPEAT"):
        least, most, inner = held
        times = min(int(most), LONGEST_NAME) - min(int(least), LONGEST_NAME) + 1
        ways = _ways(inner)
        return (
            times if ways == 1 else ways + 1 if most == 1 else float("inf")
        )  # one repetition within another
    return float("inf")  # what looks ahead or back
