"""`EncodedRows`: the rows of a split as tokens, as objects while there are few, in a file once there are many."""

from __future__ import annotations

import mmap
import tempfile
import weakref
from array import array
from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from operator import attrgetter
from pathlib import Path
from typing import overload

from lrft.data.encoded import Encoded
from lrft.files.failure import tell_failures

FEW = 2**22  # tokens: as lists of numbers they take 64 MB
AT_ONCE = 2**20  # tokens that wait to be written


class EncodedRows(Sequence[Encoded]):
    """Rows in order. A long way through them keeps none.

    Above `few` tokens a row is four bytes a token of a file without a name, and what it has beside its tokens, which
    most rows have alike, is kept once for all of them. A row is made anew each time it is asked for.

    Args:
        few: tokens that are kept as lists.

    Raises:
        WriteError: the file cannot be written, when rows are added.
    """

    def __init__(self, rows: Iterable[Encoded] = (), few: int = FEW) -> None:
        self.few, self._tokens = few, 0
        self._list: list[Encoded] = []
        self._away: _Away | None = None
        self.extend(rows)

    def extend(self, rows: Iterable[Encoded]) -> None:
        """Add rows at the end."""
        for row in rows:
            if self._away is not None:
                self._away.append(row)
                continue
            self._list.append(row)
            self._tokens += len(row.input_ids)
            if self._tokens > self.few:
                self._away = _Away()
                for one in self._list:
                    self._away.append(one)
                self._list = []

    def __len__(self) -> int:
        return len(self._list if self._away is None else self._away)

    @overload
    def __getitem__(self, index: int) -> Encoded: ...

    @overload
    def __getitem__(self, index: slice) -> Sequence[Encoded]: ...

    def __getitem__(self, index: int | slice) -> Encoded | Sequence[Encoded]:
        if self._away is None:
            return self._list[index]
        if isinstance(index, slice):
            return [self[k] for k in range(*index.indices(len(self)))]
        if not -len(self) <= index < len(self):
            raise IndexError("row index out of range")
        return self._away.row(index % len(self))

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, EncodedRows):
            return NotImplemented
        return len(self) == len(other) and all(a == b for a, b in zip(self, other, strict=True))

    def __iter__(self) -> Iterator[Encoded]:
        return iter(self._list) if self._away is None else map(self._away.row, range(len(self)))


class _Away:
    """Rows whose tokens are in a file, four bytes each, and how many in turn are not learnt and are in another."""

    def __init__(self) -> None:
        self._ids, self._runs = _Numbers(), _Numbers()
        self._ends, self._run_ends = array("q", [0]), array("q", [0])
        self._lengths, self._kinds = array("q"), array("I")
        self._others: list[dict[str, object]] = []
        self._known: dict[tuple[object, ...], int] = {}

    def append(self, row: Encoded) -> None:
        """Add a row."""
        key = type(row.label), *_others(row)  # 3 and 3.0 are equal
        kind = self._known.setdefault(key, len(self._others))
        if kind == len(self._others):
            self._others.append(dict(zip(OTHERS, _others(row), strict=True)))
        runs = runs_of(row.supervised)
        self._ids.extend(row.input_ids)
        self._runs.extend(runs)
        self._ends.append(self._ends[-1] + len(row.input_ids))
        self._run_ends.append(self._run_ends[-1] + len(runs))
        self._lengths.append(row.length)
        self._kinds.append(kind)

    def row(self, index: int) -> Encoded:
        """A row as it was."""
        learnt: list[bool] = []
        for place, run in enumerate(self._runs.read(self._run_ends[index], self._run_ends[index + 1])):
            learnt += [place % 2 == 1] * run
        found = object.__new__(Encoded)  # its own way sets sixteen values one by one, a third of the time
        found.__dict__.update(self._others[self._kinds[index]])
        found.__dict__.update(
            input_ids=self._ids.read(self._ends[index], self._ends[index + 1]).tolist(),
            supervised=learnt,
            length=self._lengths[index],
        )
        return found

    def __len__(self) -> int:
        return len(self._kinds)


OTHERS = tuple(name for name in vars(Encoded([], [])) if name not in ("input_ids", "supervised", "length"))
_others = attrgetter(*OTHERS)


def runs_of(learnt: Sequence[bool]) -> list[int]:
    """How many tokens in turn are not learnt, then are, and so on."""
    mask, runs, start = bytes(learnt), list[int](), 0
    while start < len(mask):
        end = mask.find(1 - len(runs) % 2, start)
        end = len(mask) if end < 0 else end
        runs.append(end - start)
        start = end
    return runs


class _Numbers:
    """Whole numbers of four bytes one after another in a file without a name."""

    def __init__(self) -> None:
        self._waiting = array("i")
        self._folder = Path(tempfile.gettempdir())
        with self._told():
            self._file = tempfile.TemporaryFile()  # noqa: SIM115 (closed with the rows)
        weakref.finalize(self, self._file.close)
        self._map: mmap.mmap | None = None

    def extend(self, numbers: Iterable[int]) -> None:
        """Add numbers at the end."""
        self._waiting.extend(numbers)
        if len(self._waiting) >= AT_ONCE:
            self._write()

    def read(self, start: int, end: int) -> array[int]:
        """Those from `start` to before `end`."""
        if self._waiting:
            self._write()
        found, size = array("i"), self._waiting.itemsize
        if start == end:
            return found
        if self._map is None:
            self._map = mmap.mmap(self._file.fileno(), 0, access=mmap.ACCESS_READ)
        found.frombytes(self._map[start * size : end * size])
        return found

    def _write(self) -> None:
        with self._told(self._waiting.itemsize * len(self._waiting)):
            self._waiting.tofile(self._file)
            self._file.flush()
        self._waiting, self._map = array("i"), None  # a map is as long as the file was

    def _told(self, needed: int = 0) -> AbstractContextManager[None]:
        name = f"{self._folder}: the file of the rows' tokens"
        return tell_failures(self._folder, name, needed, ", or set TMPDIR to a folder with more room")
