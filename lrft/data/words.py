r"""Tokens of many texts, each word asked for once, where a tokenizer cuts a text into words before anything else.

Byte-level tokenizers do so, by patterns that their files hold: what comes of a word then depends on nothing beside it.
Cutting a text takes a tenth of the time that its tokens take, and most words of a data set stand in it often. A text is
cut here only of letters, digits and marks whose kind every version of Unicode agrees on; any other text, and any other
tokenizer, is asked whole.
"""

from __future__ import annotations

import json
import re
import unicodedata
from collections.abc import Callable, Mapping, Sequence
from itertools import chain
from typing import Any

from lrft.registry.json import Json, to_list, to_section

ALONE = {"add_special_tokens": False, "verbose": False}  # how a text is asked for by itself
IDS_ALONE = {"return_attention_mask": False, "return_token_type_ids": False}

HELD = 4_000_000  # characters of the words that are remembered; then they are forgotten
# Letters of Latin, Greek and Russian, and marks; neither the long s, which is an s where case says nothing, nor what
# composes with others.
RANGES = ((9, 0xB), (0xD, 0xE), (0x20, 0x7F), (0xA0, 0x17F), (0x391, 0x3A2), (0x3A3, 0x3CA), (0x410, 0x450))
MARKS = ((0x2010, 0x2028), (0x2030, 0x203B), (0x20AC, 0x20AD), (0x2190, 0x2300))
KNOWN = [c for span in (*RANGES, *MARKS) for c in map(chr, range(*span)) if unicodedata.category(c) != "Cf"]
SPACE = "".join(c for c in KNOWN if c.isspace())
WRITTEN = re.compile(f"[{re.escape(''.join(KNOWN))}]*")
GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
ATOM = re.compile(r"\\p\{\w+\}|\\.|.", re.DOTALL)
PROBES = (
    "It's 12345 O'CLOCK,  isn't it?\n\n\t(yes) £3.50 \u2013 “so”\r\n x\xa0y",
    " a  b   \n c\n",
    "don't1,000.5%%\xbd _a",
)

Find = Callable[[str], list[str]]


def tokens_of_many(tokenizer: Any) -> Callable[[Sequence[str]], list[list[int]]]:
    """What gives the tokens of texts, each alone, in one call of the tokenizer or none."""
    words = _Words.of(tokenizer)
    return (lambda texts: _asked(tokenizer, texts)) if words is None else words.tokens


def _asked(tokenizer: Any, texts: Sequence[str]) -> list[list[int]]:
    return list(tokenizer(list(texts), **ALONE, **IDS_ALONE)["input_ids"]) if texts else []


class _Words:
    """The words met so far, each with its tokens; a word that would be cut otherwise by itself is none.

    Args:
        marks: tokens that a text is cut at before its words.
        odd: tokens that are found by other rules; a text that has one is asked whole.
        stages: patterns that a text is cut by, one after another.
    """

    def __init__(self, tokenizer: Any, marks: list[str], odd: list[str], stages: list[Find]) -> None:
        self.tokenizer = tokenizer
        self.alone = set(marks)
        self.marks = re.compile(f"({_any_of(marks)})") if marks else None
        self.odd = re.compile(_any_of(odd)) if odd else None
        self.stages = stages
        self.known: dict[str, list[int]] = {}
        self.held = 0

    @classmethod
    def of(cls, tokenizer: Any) -> _Words | None:
        """None where the tokenizer does not cut texts so, or not by these patterns."""
        backend = getattr(tokenizer, "backend_tokenizer", None)
        stages = None if backend is None or _rewrites(tokenizer, backend) else _stages(backend.pre_tokenizer)
        if stages is None:
            return None
        odd: list[str] = []
        marks: list[str] = []
        for token in tokenizer.added_tokens_decoder.values():
            plain = not (token.lstrip or token.rstrip or token.single_word or token.normalized)
            (marks if plain else odd).append(str(token))
        found = cls(tokenizer, marks, odd, stages)
        probes = [*PROBES, *(f"a {mark}\n{mark}b" for mark in marks[:4])]
        return found if found.tokens(probes) == _asked(tokenizer, probes) else None

    def tokens(self, texts: Sequence[str]) -> list[list[int]]:
        """The tokens of each text."""
        if self.held > HELD:
            self.known, self.held = {}, 0
        cut = [self._cut(text) for text in texts]
        new = set(chain.from_iterable(words for words in cut if words)).difference(self.known)
        if bound := {word for word in new if word not in self.alone and self._words(word) != [word]}:
            new -= bound
            cut = [None if words and not bound.isdisjoint(words) else words for words in cut]
        whole = [text for text, words in zip(texts, cut, strict=True) if words is None]
        found = iter(_asked(self.tokenizer, [*whole, *new]))
        asked = [next(found) for _ in whole]
        self.known.update(zip(new, found, strict=True))
        self.held += sum(map(len, new))
        known, rest = self.known.__getitem__, iter(asked)
        return [
            next(rest) if words is None else list(chain.from_iterable(map(known, words))) for words in cut
        ]

    def _cut(self, text: str) -> list[str] | None:
        """The words of a text, and what it is cut at; None where it has to be asked whole."""
        if WRITTEN.fullmatch(text) is None or (self.odd is not None and self.odd.search(text)):
            return None
        if self.marks is None:
            return self._words(text)
        pieces = self.marks.split(text)
        return [word for k, piece in enumerate(pieces) for word in ([piece] if k % 2 else self._words(piece))]

    def _words(self, text: str) -> list[str]:
        found = [text] if text else []
        for find in self.stages:
            found = list(chain.from_iterable(map(find, found)))
        return found


def _any_of(tokens: list[str]) -> str:
    """A pattern of them that takes the longest."""
    return "|".join(re.escape(token) for token in sorted(tokens, key=len, reverse=True))


def _rewrites(tokenizer: Any, backend: Any) -> bool:
    """Whether something happens to a text beside the cutting, or may happen to a word another way each time."""
    normal = None if backend.normalizer is None else _state(backend.normalizer).get("type")
    model = type(backend.model).__name__
    return (
        normal not in (None, "NFC")  # nothing in `KNOWN` composes
        or model != "BPE"
        or bool(backend.model.dropout)
        or bool(backend.encode_special_tokens)
        or bool(getattr(tokenizer, "split_special_tokens", False))
    )


def _stages(cutter: Any) -> list[Find] | None:
    """The patterns, in the order in which they cut; None where they are not all known, or do not end in bytes."""
    if cutter is None:
        return None
    state = _state(cutter)
    steps = [to_section(one) for one in to_list(state.get("pretokenizers", [state]))]
    if steps[-1].get("type") != "ByteLevel" or steps[-1].get("add_prefix_space"):
        return None
    stages = [_stage(step) for step in steps if step.get("type") != "ByteLevel" or step.get("use_regex")]
    return None if None in stages else [stage for stage in stages if stage is not None]


def _stage(step: Mapping[str, Json]) -> Find | None:
    match step:
        case {"type": "ByteLevel"}:
            return _finder(GPT2, gaps=True)
        case {"type": "Digits", "individual_digits": alone}:
            return _finder(r"\p{N}" if alone else r"\p{N}+", gaps=True)
        case {"type": "Split", "pattern": {"String": str(text)}, "behavior": "Isolated", "invert": False}:
            return _finder(re.sub(r"\\(\s)", r"\1", re.escape(text)), gaps=True)
        case {"type": "Split", "pattern": {"Regex": str(text)}, "behavior": "Isolated", "invert": False}:
            return _finder(text, gaps=True)
        case {"type": "Split", "pattern": {"Regex": str(text)}, "behavior": "Removed", "invert": True}:
            return _finder(text, gaps=False)
    return None


def _finder(written: str, gaps: bool) -> Find | None:
    """All matches of a pattern in turn, and with `gaps` what stands between them."""
    pattern = _translated(written)
    if pattern is None:
        return None
    try:
        found = re.compile(f"{pattern}|(?:(?!{pattern})[\\S\\s])+" if gaps else pattern)
    except re.error:
        return None
    return None if found.groups or re.match(pattern, "") else found.findall


def _translated(written: str) -> str | None:
    r"""A pattern of the tokenizer's library as one of Python's, over `KNOWN`; None where they may not agree."""
    found, inside = [], False
    for atom in ATOM.findall(written):
        if atom in ("[", "]") and inside == (atom == "]"):
            inside = not inside
        elif atom.startswith("\\p"):
            kind = atom[3:-1]
            members = re.escape("".join(c for c in KNOWN if unicodedata.category(c).startswith(kind)))
            atom = members if inside else f"[{members}]"
        elif atom == "\\s":
            atom = SPACE if inside else f"[{SPACE}]"
        elif atom == "\\S" and not inside:
            atom = f"[^{SPACE}]"
        elif (atom[0] == "\\" and atom[1:].isalnum() and atom not in (r"\r", r"\n", r"\t")) or (
            atom in "[]&" if inside else atom in "]^$."
        ):
            return None
        found.append(atom)
    return "(?:" + "".join(found) + ")"


def _state(part: Any) -> Mapping[str, Json]:
    return to_section(json.loads(part.__getstate__()))
