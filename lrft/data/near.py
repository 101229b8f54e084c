"""Which texts say nearly the same, among very many: MinHash with bands, then the exact share.

A text is the set of its runs of `RUN` words; case and punctuation say nothing, nor do runs that stand in more than a
tenth of all texts, such as those of a system message or a prompt's frame. Two texts are near where the sets have at
least `NEAR`, or another share, of their union in common.

MinHash finds whom to compare: the least of a set under a random order is equal for two sets as often as they share
their union. `DRAWS` such orders in bands of `BAND` bring a pair of 0.8 together with a chance of 0.9998, one of 0.5 in
two of three cases; below `LOW` bands of 2 bring one of 0.5 together with 0.9999. In a crowd of texts that share a band,
each is compared with the first and with the one before it; where one set of texts is looked for in another, with the
first `CROWD`.
"""

from __future__ import annotations

import re
import string
from array import array
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from lrft.core import stop

RUN, NEAR = 3, 0.8
DRAWS, BAND = 64, 4
LOW, CROWD = 0.75, 16
SEED = 1
COMMON = 0.1  # share of the texts; and at least `FEW` of them, or two equal ones of ten would say nothing
FEW = 10
SPACES = str.maketrans(dict.fromkeys(string.punctuation, " "))
NO_SPACES = (
    "\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uac00-\ud7af"  # scripts of which each character is a word
)
WORD = re.compile(rf"[{NO_SPACES}]|[^\W_{NO_SPACES}]+")
GOLDEN = np.uint64(0x9E3779B97F4A7C15)

Hashes = NDArray[np.uint64]
Least = NDArray[np.uint32]


@dataclass(frozen=True)
class Pair:
    """Two near texts by index, the earlier one first, and the share of their union that they have in common."""

    earlier: int
    later: int
    share: float


def words(text: str) -> list[str]:
    """The words of a text in lower case, without punctuation."""
    lower = text.lower()
    return lower.translate(SPACES).split() if lower.isascii() else WORD.findall(lower)


class _Numbers(dict[str, int]):
    """Numbers of words, in the order in which they are asked for."""

    def __missing__(self, word: str) -> int:
        self[word] = number = len(self)
        return number


class Texts:
    """Texts as numbers, one number a word; `len` of it is how many there are."""

    def __init__(self) -> None:
        self._numbers = _Numbers()
        self._words = array("I")
        self._ends = array("Q")

    def __len__(self) -> int:
        return len(self._ends)

    def add(self, parts: Iterable[str]) -> None:
        """One more text, which may come in parts."""
        for part in parts:
            self._words.extend(map(self._numbers.__getitem__, words(part)))
        self._ends.append(len(self._words))

    def near(self, share: float = NEAR, before: int | None = None) -> list[Pair]:
        """For every text that is near an earlier one such a pair, in order; of several the nearest.

        Args:
            share: of their union, from which two texts are near.
            before: only texts from this index on are looked for, among those below it.
        """
        runs, starts = self._runs()
        kept = np.flatnonzero(
            starts[1:] > starts[:-1]
        )  # a text without a run of its own is compared with nothing
        if len(kept) < 2:
            return []
        least = _least(runs, starts[kept])
        best: dict[int, Pair] = {}
        known = None if before is None else int(np.searchsorted(kept, before))
        for first, second in _candidates(least, share, known):
            stop.poll()
            a, b = int(kept[first]), int(kept[second])
            found = _share(runs[starts[a] : starts[a + 1]], runs[starts[b] : starts[b + 1]])
            if found >= share and (b not in best or found > best[b].share):
                best[b] = Pair(a, b, found)
        return [best[index] for index in sorted(best)]

    def _runs(self) -> tuple[Hashes, NDArray[np.int64]]:
        """The hashed runs of all texts, one text after another, and where each text's begin, with the end of the last.

        A text of fewer words than a run takes is one run.
        """
        ends = np.frombuffer(self._ends, np.uint64).astype(np.int64)
        lengths = np.diff(ends, prepend=0)
        counts = np.where(lengths > 0, np.maximum(lengths - RUN + 1, 1), 0)
        hashes = _mixed(np.frombuffer(self._words, np.uint32).astype(np.uint64))
        shifted = np.concatenate([hashes, np.zeros(RUN, np.uint64)])
        text = np.repeat(np.arange(len(ends)), counts)
        begins = np.concatenate([[0], np.cumsum(counts)])
        at = np.arange(begins[-1]) - begins[text] + (ends - lengths)[text]
        runs = np.zeros(len(at), np.uint64)
        for k in range(RUN):
            inside = at + k < ends[text]
            runs = _mixed(runs + np.where(inside, shifted[at + k], np.uint64(k)))
        told = ~_common(runs, len(ends))
        kept = np.concatenate([[0], np.cumsum(told)])[begins]
        return runs[told], kept


def _common(runs: Hashes, texts: int) -> NDArray[np.bool_]:
    """Which runs stand in so many texts that they tell none from another."""
    found, counts = np.unique(runs, return_counts=True)
    frequent = found[counts > max(COMMON * texts, FEW)]
    if not len(frequent):
        return np.zeros(len(runs), np.bool_)
    place = np.minimum(np.searchsorted(frequent, runs), len(frequent) - 1)
    return np.asarray(frequent[place] == runs)


def _least(runs: Hashes, starts: NDArray[np.int64]) -> Least:
    """(draws, texts): the least of every text's runs under each order."""
    draw = np.random.default_rng(SEED)
    half = (runs >> np.uint64(32)).astype(np.uint32)
    least = np.empty((DRAWS, len(starts)), np.uint32)
    for k in range(DRAWS):
        factor, shift = draw.integers(0, 2**32, 2, dtype=np.uint32)
        least[k] = np.minimum.reduceat(half * (factor | np.uint32(1)) + shift, starts)
    return least


def _candidates(least: Least, share: float, known: int | None) -> Iterator[tuple[int, int]]:
    """Pairs that share a band, and in all draws enough for being near; each once, by rising second."""
    found = []
    band = BAND if share >= LOW else 2
    for k in range(0, DRAWS, band):
        key = np.zeros(least.shape[1], np.uint64)
        for row in least[k : k + band]:
            key = _mixed(key + row)
        order = np.argsort(key, kind="stable")
        same = np.concatenate([[False], key[order][1:] == key[order][:-1]])
        first = np.maximum.accumulate(np.where(same, 0, np.arange(len(order))))
        later = np.flatnonzero(same)
        places = [first[later], later - 1]
        if known is not None:
            places = [np.minimum(first[later] + ahead, later - 1) for ahead in range(CROWD)]
        found += [np.unique(np.stack([order[place], order[later]]), axis=1) for place in places]
    pairs = np.unique(np.concatenate(found, axis=1), axis=1)
    if known is not None:
        pairs = pairs[:, (pairs[0] < known) & (pairs[1] >= known)]
    agree = np.zeros(pairs.shape[1])
    for row in least:
        agree += row[pairs[0]] == row[pairs[1]]
    yield from pairs[:, agree >= DRAWS * (share - 0.2)].T.tolist()


def _share(a: Hashes, b: Hashes) -> float:
    """Of the union of two sets, the part that is in both."""
    first, second = set(a.tolist()), set(b.tolist())
    return len(first & second) / len(first | second)


def _mixed(values: Hashes) -> Hashes:
    """Numbers that look random, equal ones for equal ones (the finish of SplitMix64)."""
    values = (values + GOLDEN) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(31))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(29))
