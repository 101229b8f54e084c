"""Rows of a large Parquet file, a row group at a time."""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Iterable, Iterator
from itertools import accumulate
from pathlib import Path
from typing import Any

from lrft.data.example import Row
from lrft.data.rows import Indexed, each
from lrft.registry.errors import DataError
from lrft.registry.json import Json


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


def finite(rows: Indexed[Row], path: Path) -> Indexed[Row]:
    """The rows of a Parquet file; one with an infinity, or NaN inside a value, is refused when it is asked for.

    A NaN that is all of a value is null: so a table with gaps is written, and what reads the column refuses the gap.

    Files without fractional numbers, which most are, are handed back as they are.
    """
    from pyarrow.parquet import ParquetFile

    with ParquetFile(path) as file:
        fractional = {"FLOAT", "DOUBLE", "FIXED_LEN_BYTE_ARRAY"}  # of half precision, the last
        kinds = {file.schema.column(k).physical_type for k in range(len(file.schema))}
    return FiniteRows(rows, path) if kinds & fractional else rows


class FiniteRows:
    """Rows, each looked through before it is given.

    Raises:
        DataError: a row holds a number that is none, when it is asked for.
    """

    def __init__(self, rows: Indexed[Row], name: Path | str) -> None:
        self.rows, self.name = rows, name

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> Row:
        return self._checked(index, self.rows[index])

    def __iter__(self) -> Iterator[Row]:
        for index, row in enumerate(self.rows if isinstance(self.rows, Iterable) else each(self.rows)):
            yield self._checked(index, row)

    def _checked(self, index: int, row: Row) -> Row:
        row = {name: None if value != value else value for name, value in row.items()}
        for name, value in row.items():
            if (found := _not_finite(value)) is not None:
                raise DataError(
                    f"{self.name} row {index}: column {name!r} holds {found}, which is no number; correct it"
                )
        return row


def _not_finite(value: Json) -> float | None:
    if isinstance(value, float):
        return None if math.isfinite(value) else value
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return next((found for one in inner if (found := _not_finite(one)) is not None), None)
