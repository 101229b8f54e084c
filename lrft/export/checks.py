"""One line of a checklist, verified on what is in a file."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypedDict


class Check(TypedDict):
    """`found` says what was wrong, and is empty where nothing was."""

    check: str
    passed: bool
    found: str


def check(name: str, wrong: Sequence[object], sentence: str = "{}") -> Check:
    """Passed where `wrong` is empty; its first entries go into the sentence."""
    shown = ", ".join(map(str, wrong[:3])) + (f" and {len(wrong) - 3} more" if len(wrong) > 3 else "")
    return {"check": name, "passed": not wrong, "found": sentence.format(shown) if wrong else ""}
