"""Regular expressions of a recipe, which may be a stranger's, run on texts of any length where that cannot take long.

Python's matcher tries one way after another to divide a text among the parts of a pattern: `(a+)+b` on forty letters
outlives the machine. A repeat, or a choice, is decided where no character that it can begin with can also come after
it. The steps of a pattern are counted from its end, on a text of n characters,

    of a repeat that is decided      s' = s + n i
    of one that is not               s' = n (s + i),  as all after it is tried at each of its lengths
    of a choice that is not          s' = sum over its branches

with s the steps of all that comes after it and i those of a round of the repeat. Within a repeat everything has to be
decided: the ways of one that is not grow as 2^n.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache, reduce
from operator import or_
from typing import Any

LONGEST = 1000  # characters of a pattern
TEXT = 10**4  # characters of the text that steps are counted for
STEPS = 10**9  # `<think>.*?</think>\s*<answer>.*?</answer>` takes 2 10^8, seconds at the worst
PARSE: Callable[..., Any] = re._parser.parse  # type: ignore[attr-defined]
COMPILE: Callable[..., re.Pattern[str]] = re._compiler.compile  # type: ignore[attr-defined]
LETTERS = "".join(chr(code) for code in (*range(0xD800), *range(0xE000, 0x10000)))  # no halves of pairs
ANYTHING = (1 << len(LETTERS)) - 1
Head = tuple[int, bool]  # characters, a bit for each of LETTERS, and whether nothing will do
REMEDY = "write at most two .*, and [^<]* or the like elsewhere, which the next character ends"


def check_pattern(pattern: str, flags: int = 0) -> None:
    """Refuse what is no regular expression of Python, and one that could take long on a text of `TEXT` characters.

    Raises:
        ValueError: says which.
    """
    shown = repr(pattern if len(pattern) <= 60 else f"{pattern[:60]}...")
    if len(pattern) > LONGEST:
        raise ValueError(f"pattern {shown} has {len(pattern):,} characters; at most {LONGEST:,} are run")
    try:
        re.compile(pattern, flags)
        parsed = PARSE(pattern, flags)
        found = _Steps(parsed.state).of(parsed, 0, 1, parsed.state.flags, False)
    except (re.error, RecursionError, OverflowError) as error:
        raise ValueError(f"pattern {shown} is no regular expression ({error}); mend it") from None
    if found > STEPS:
        raise ValueError(f"pattern {shown} could take very long to match a long text; {REMEDY}")


class _Steps:
    """The steps of one parsed pattern."""

    def __init__(self, state: Any) -> None:
        self.state = state
        self._heads: dict[int, Head] = {}  # of sequences, by which object each is

    def of(self, parts: Any, after: int, then: float, flags: int, repeated: bool) -> float:
        """Those of a sequence of parts and of all that comes after it.

        Args:
            after: the characters that can come after it.
            then: the steps of what comes after it.
            repeated: the sequence stands within a repeat, and is taken for one round.
        """
        found = list(parts)
        for place in reversed(range(len(found))):
            kind, held = found[place]
            first, empty = self._head_of(kind, held, flags)
            # After a letter that it cannot hold its rounds are those between one such letter and the next.
            before, letter = found[place - 1] if place else ("", None)
            between = str(before) == "LITERAL" and not first & self._letters(before, letter, flags)
            then = self._before(kind, held, after, then, flags, repeated, between)
            if then > STEPS:
                return math.inf
            after = first | after if empty else first
        return then

    def _before(
        self, kind: Any, held: Any, after: int, then: float, flags: int, repeated: bool, between: bool
    ) -> float:
        match str(kind):
            case "LITERAL" | "NOT_LITERAL" | "ANY" | "IN" | "AT":
                return then
            case "GROUPREF":
                return then + TEXT
            case "SUBPATTERN":
                return self.of(held[3], after, then, (flags | held[1]) & ~held[2], repeated)
            case "ATOMIC_GROUP":
                return self.of(held, after, then, flags, repeated)
            case "BRANCH":
                return self._before_branch(held[1], after, then, flags, repeated)
            case "MAX_REPEAT" | "MIN_REPEAT" | "POSSESSIVE_REPEAT":
                return self._before_repeat(held, after, then, flags, repeated, between)
            case "ASSERT" | "ASSERT_NOT":  # begun anew wherever it is come to, and left by one way
                return then + self.of(held[1], ANYTHING, 1, flags, False)
        return math.inf  # what asks whether a group matched, and what is not known here

    def _before_branch(
        self, options: Sequence[Any], after: int, then: float, flags: int, repeated: bool
    ) -> float:
        heads = [
            first | after if empty else first for first, empty in (self._head(o, flags) for o in options)
        ]
        steps = [self.of(one, after, then, flags, repeated) for one in options]
        if sum(heads) == reduce(or_, heads):
            return max(steps)
        return math.inf if repeated else sum(steps)

    def _before_repeat(
        self, held: Any, after: int, then: float, flags: int, repeated: bool, between: bool
    ) -> float:
        least, most, inner = held
        rounds = min(int(most), TEXT)
        again = rounds > 1
        first, empty = self._head(inner, flags)
        decided = not empty and not first & after
        if not again:
            once = self.of(inner, after, then, flags, repeated)
            return max(once, then) if decided or least else math.inf if repeated else once + then
        inside = self.of(inner, first | after, 1, flags, True)
        if decided or int(least) >= rounds:  # one round after another, each character in one of them
            return then + inside * (1 if repeated or between else rounds)
        return math.inf if repeated else (rounds - int(least) + 1) * (then + inside)

    def _head(self, parts: Any, flags: int) -> Head:
        """What a sequence can begin with, and whether it can match nothing."""
        if id(parts) not in self._heads:
            first, empty = 0, True
            for kind, held in parts:
                one, empty = self._head_of(kind, held, flags)
                first |= one
                if not empty:
                    break
            self._heads[id(parts)] = first, empty
        return self._heads[id(parts)]

    def _head_of(self, kind: Any, held: Any, flags: int) -> Head:
        match str(kind):
            case "LITERAL" | "NOT_LITERAL" | "ANY" | "IN":
                return self._letters(kind, held, flags), False
            case "SUBPATTERN":
                return self._head(held[3], (flags | held[1]) & ~held[2])
            case "ATOMIC_GROUP":
                return self._head(held, flags)
            case "BRANCH":
                heads = [self._head(one, flags) for one in held[1]]
                return reduce(or_, (first for first, _ in heads)), any(empty for _, empty in heads)
            case "MAX_REPEAT" | "MIN_REPEAT" | "POSSESSIVE_REPEAT":
                first, empty = self._head(held[2], flags)
                return first, empty or int(held[0]) == 0
            case "AT" | "ASSERT" | "ASSERT_NOT":
                return 0, True
        return ANYTHING, True

    def _letters(self, kind: Any, held: Any, flags: int) -> int:
        if str(kind) == "LITERAL" and not flags & re.IGNORECASE:
            place = LETTERS.find(chr(held))
            return 1 << place if place >= 0 else ANYTHING
        return _letters(_Node(kind, held), flags)


@dataclass(frozen=True, eq=False)
class _Node:
    """One character of a pattern, as the parser has it; the same where it is written the same."""

    kind: Any
    held: Any

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Node) and repr((self.kind, self.held)) == repr((other.kind, other.held))

    def __hash__(self) -> int:
        return hash(repr((self.kind, self.held)))


@lru_cache(maxsize=256)
def _letters(node: _Node, flags: int) -> int:
    """What it can be, of `LETTERS`."""
    parsed = PARSE("(?:a)+", flags)
    parsed.data[0][1][2].data[0] = (node.kind, node.held)
    found = 0
    for run in COMPILE(parsed, flags).finditer(LETTERS):
        found |= ((1 << (run.end() - run.start())) - 1) << run.start()
    return found or ANYTHING  # beyond `LETTERS`
