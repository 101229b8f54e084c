"""Near-miss suggestions, shared by every error that names something unknown."""

from __future__ import annotations

import re
from collections.abc import Iterable
from difflib import get_close_matches


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """`"; did you mean X or Y?"`, or a list of what exists when nothing is near."""
    known = sorted(known)
    found = near(word, known)
    if found:
        return f"; did you mean {' or '.join(found)}?"
    shown = ", ".join(known[:12]) + (", ..." if len(known) > 12 else "")
    return f"; known: {shown}" if known else ""


def near(word: str, known: Iterable[str], cutoff: float = 0.6) -> list[str]:
    """At most two of `known` that `word` may be a misspelling of, the nearest first; a long word is none."""
    return get_close_matches(word, sorted(known), n=2, cutoff=cutoff) if len(word) <= 60 else []


def squeezed(word: str) -> str:
    """A name as everyone writes it: `Paged-AdamW_8bit` and `paged_adamw8bit` are one word."""
    return re.sub(r"[^a-z0-9+]", "", word.lower())


def listed(words: Iterable[str], last: str) -> str:
    """`a, b or c`."""
    words = list(words)
    return (
        words[0]
        if len(words) == 1
        else f"{', '.join(words[:-1])} {last} {words[-1]}"
        if words
        else "none yet"
    )


def a(noun: str) -> str:
    """The noun with its article."""
    return f"an {noun}" if noun[0] in "aeiou" else f"a {noun}"
