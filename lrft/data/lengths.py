"""How long rows are, and what length to train at."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass

from lrft.registry.json import Json

STEP = 64  # lengths are suggested in multiples of it
MOST = 0.99  # of the rows; a length for all of them is suggested unless it is more than twice as long as one for these


@dataclass(frozen=True)
class Lengths:
    """The lengths of the rows of one split in tokens, before any cut, sorted."""

    sorted: tuple[int, ...]

    @classmethod
    def of(cls, lengths: Sequence[int]) -> Lengths:
        """From lengths in any order."""
        return cls(tuple(sorted(lengths)))

    def held(self, length: int) -> float:
        """The share of the rows that are no longer."""
        return bisect_right(self.sorted, length) / len(self.sorted) if self.sorted else 1.0

    def suggested(self) -> int:
        """The length to train at: for all rows, or for nearly all where the rest is very much longer."""
        every, most = self._rounded(1.0), self._rounded(MOST)
        return every if every <= 2 * most else most

    def bins(self) -> list[tuple[int, int, int]]:
        """(first length, last length, rows): from 1 to `STEP`, then of every doubling up to the longest row."""
        found, first, last = [], 1, STEP
        while self.sorted and first <= self.sorted[-1]:
            count = bisect_right(self.sorted, last) - bisect_right(self.sorted, first - 1)
            found.append((first, last, count))
            first, last = last + 1, 2 * last
        return found

    def record(self) -> dict[str, Json]:
        """Plain values."""
        return {
            "bins": [[first, last, count] for first, last, count in self.bins()],
            "suggested_max_length": self.suggested(),
            "held": {str(length): round(self.held(length), 6) for length in self._told()},
        }

    def facts(self) -> list[tuple[str, str]]:
        """The distribution on one line, what each length would hold on another, and the suggestion."""
        if not self.sorted:
            return []
        length = self.suggested()
        over = len(self.sorted) - bisect_right(self.sorted, length)
        rest = (
            f"; {over:,} rows of up to {self.sorted[-1]:,} tokens are longer"
            if over
            else ", which holds all rows"
        )
        return [
            ("lengths", ", ".join(f"{first}-{last}: {count:,}" for first, last, count in self.bins())),
            ("held by train.max_length", ", ".join(f"{n}: {self.held(n):.1%}" for n in self._told())),
            ("suggested train.max_length", f"{length}{rest}"),
        ]

    def _told(self) -> list[int]:
        return sorted({self._rounded(share) for share in (0.5, 0.9, 0.95, MOST, 1.0)})

    def _rounded(self, share: float) -> int:
        """The least multiple of `STEP` that holds this share of the rows."""
        if not self.sorted:
            return STEP
        at = max(-(-len(self.sorted) * round(share * 100) // 100), 1) - 1
        return -(-self.sorted[at] // STEP) * STEP
