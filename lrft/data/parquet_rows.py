"""Rows of a large Parquet file, a row group at a time."""

from __future__ import annotations

from bisect import bisect_right
from itertools import accumulate
from pathlib import Path
from typing import Any

from lrft.data.example import Row


class ParquetRows:
    """Rows that are read when they are asked for; of the file only the row group met last is held.

    Args:
        limit: only so many rows, the first ones.

    Raises:
        pyarrow.ArrowException: it is no readable Parquet file.
    """

    def __init__(self, path: Path, limit: int | None = None) -> None:
        from pyarrow.parquet import ParquetFile  # comes with datasets

        self.path = path
        with ParquetFile(path) as file:
            facts = file.metadata
            self.ends = list(accumulate(facts.row_group(k).num_rows for k in range(facts.num_row_groups)))
        held = self.ends[-1] if self.ends else 0
        self.count = held if limit is None else min(limit, held)
        self._group = -1
        self._table: Any = None

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> Row:
        if not 0 <= index < self.count:
            raise IndexError(index)
        group = bisect_right(self.ends, index)
        if group != self._group:
            self._group, self._table = group, self._read(group)
        begin = self.ends[group - 1] if group else 0
        row: Row = self._table.slice(index - begin, 1).to_pylist()[0]
        return row

    def _read(self, group: int) -> Any:
        from pyarrow.parquet import ParquetFile

        with ParquetFile(self.path) as file:
            return file.read_row_group(group)
