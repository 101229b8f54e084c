"""Rows from files, folders and hub data sets."""

from __future__ import annotations

import hashlib
import json
import re
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from lrft.data.example import Row
from lrft.data.hub import offline_if_unreachable
from lrft.data.text_files import TEXT_READERS
from lrft.registry.config import Source
from lrft.registry.did_you_mean import did_you_mean
from lrft.registry.errors import DataError
from lrft.registry.json import Json

Role = Literal["train", "eval"]

SUFFIXES = (*TEXT_READERS, ".parquet")
SPLITS = {"train": ("train",), "eval": ("eval", "validation", "valid", "dev", "test")}
HUB_SPLIT = {"train": "train", "eval": "test"}
HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")


@dataclass(frozen=True)
class Rows:
    """The rows of one source, in file order.

    Attributes:
        rows: one dict a row.
        origin: path of the file, or hub id and split as `id:split`.
        fingerprint: sha256 of the file's bytes or of streamed rows, or the hub data set's own with its revision.
        lines: line of each row, where the file has lines.
        filled: nested objects hold a null for every key that some other row has, as columnar files do.
    """

    rows: Sequence[Row]
    origin: str
    fingerprint: str
    lines: Sequence[int] | None = None
    filled: bool = False

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> Row:
        row = self.rows[index]
        return _drop_nulls(row) if self.filled else row

    def __iter__(self) -> Iterator[Row]:
        return map(_drop_nulls, self.rows) if self.filled else iter(self.rows)

    def where(self, index: int) -> str:
        """`file:line`, or `origin row i` (from 0) where there are no lines."""
        return f"{self.origin} row {index}" if self.lines is None else f"{self.origin}:{self.lines[index]}"


def read_rows(source: Source, role: Role) -> Rows:
    """The rows of `data.train` or `data.eval`.

    A path that exists is read as a file, or as a folder holding one file a split; anything that looks like a
    hub id is loaded from the hub.

    Raises:
        DataError: nothing there, malformed (with file and line), or no rows.
    """
    path = Path(source.source).expanduser()
    if path.is_dir():
        path = _split_file(path, source, role)
    elif not path.exists():
        if not _is_hub_id(source.source):
            raise DataError(f"data.{role}.source: no file {source.source}{_near_files(path)}")
        return _read_hub(source, role)
    elif source.split is not None:
        raise DataError(f"data.{role}.split: {source.source} is one file and has no splits; remove the key")
    for key in ("name", "revision", "stream"):
        if getattr(source, key) is not None:
            raise DataError(f"data.{role}.{key}: {source.source} is local; the key is for hub data sets")
    rows = _read_file(path, role, source.limit)
    if not len(rows):
        raise DataError(f"{path}:1: the file has no rows")
    return rows


def _read_file(path: Path, role: Role, limit: int | None) -> Rows:
    suffix = _suffix(path)
    if suffix is None:
        raise DataError(f"data.{role}.source: {path} is of no known kind; files end in {', '.join(SUFFIXES)}")
    try:
        with path.open("rb") as file:
            fingerprint = hashlib.file_digest(file, "sha256").hexdigest()
        if suffix == ".parquet":
            return Rows(_read_parquet(path, limit), str(path), fingerprint, filled=True)
        rows, lines = TEXT_READERS[suffix](path, limit)
    except OSError as error:
        raise DataError(f"{path}: {error.strerror or error}") from error
    return Rows(rows, str(path), fingerprint, lines)


def _read_parquet(path: Path, limit: int | None) -> Sequence[Row]:
    import datasets

    # A cache of its own, gone when the rows are in memory, can never be served for a file that has changed.
    bars = datasets.is_progress_bar_enabled()
    datasets.disable_progress_bars()
    try:
        with tempfile.TemporaryDirectory() as cache:
            rows = datasets.Dataset.from_parquet(str(path), cache_dir=cache, keep_in_memory=True)
    except Exception as error:  # pyarrow's and datasets' many kinds; the cause is what helps
        if "corresponds to no data" in str(error):
            return []
        raise DataError(f"{path}: no readable parquet file. {_first_line(error)}") from error
    finally:
        if bars:
            datasets.enable_progress_bars()
    kept: Sequence[Row] = rows if limit is None else rows.select(range(min(limit, len(rows))))
    return kept


def _read_hub(source: Source, role: Role) -> Rows:
    import datasets

    offline_if_unreachable()
    split = source.split or HUB_SPLIT[role]
    place, streams = (source.source, source.name), source.stream is not None
    try:
        rows = datasets.load_dataset(*place, split=split, revision=source.revision, streaming=streams)
        if source.stream is not None:
            rows = list(rows.take(min(source.stream, source.limit or source.stream)))
    except Exception as error:  # network, missing set, configuration or split: told apart by their message
        remedy = "A stream needs the network; without `stream`," if streams else "Without network,"
        raise DataError(
            f"data.{role}.source: no file {source.source!r}, and the hub did not give it (split {split!r}): "
            f"{_first_line(error)} {remedy} download it first and keep HF_HOME, or name a file."
        ) from error
    if source.limit is not None and not streams:
        rows = rows.select(range(min(source.limit, len(rows))))
    if not len(rows):
        raise DataError(f"data.{role}.source: {source.source}, split {split!r}, has no rows")
    fingerprint = _digest(rows) if streams else rows._fingerprint
    revision = f"@{source.revision}" if source.revision else ""
    return Rows(rows, f"{source.source}:{split}", f"{fingerprint}{revision}", filled=True)


def _drop_nulls(row: Row) -> Row:
    """The row without the nulls inside its columns; a column that is null itself stays."""
    return {name: _without_nulls(value) for name, value in row.items()}


def _without_nulls(value: Json) -> Json:
    if isinstance(value, dict):
        return {key: _without_nulls(item) for key, item in value.items() if item is not None}
    return [_without_nulls(item) for item in value] if isinstance(value, list) else value


def _digest(rows: Sequence[Row]) -> str:
    """sha256 of the rows themselves: a stream has no fingerprint of what was taken from it."""
    digest = hashlib.sha256()
    for row in rows:
        digest.update(json.dumps(row, sort_keys=True, default=str).encode())
    return digest.hexdigest()


def _split_file(folder: Path, source: Source, role: Role) -> Path:
    """The one file of a folder that holds the wanted split."""
    files = sorted(path for path in folder.iterdir() if path.is_file() and _suffix(path))
    wanted = (source.split,) if source.split else SPLITS[role]
    for split in wanted:
        found = [path for path in files if path.name.removesuffix(_suffix(path) or "") == split]
        if len(found) > 1:
            names = ", ".join(path.name for path in found)
            raise DataError(f"data.{role}.source: {folder} holds {names}; name the file that is meant")
        if found:
            return found[0]
    names = ", ".join(path.name for path in files) or "no data files"
    raise DataError(f"data.{role}.source: {folder} has no file called {' or '.join(wanted)}; it has {names}")


def _suffix(path: Path) -> str | None:
    return next(
        (suffix for suffix in sorted(SUFFIXES, key=len, reverse=True) if path.name.endswith(suffix)), None
    )


def _is_hub_id(source: str) -> bool:
    return bool(HUB_ID.fullmatch(source)) and _suffix(Path(source)) is None


def _near_files(path: Path) -> str:
    folder = path.parent
    if not folder.is_dir():
        return f"; the folder {folder} does not exist"
    files = [entry.name for entry in folder.iterdir() if entry.is_dir() or _suffix(entry)]
    return did_you_mean(path.name, files)


def _first_line(error: BaseException) -> str:
    """The innermost cause's first line, as a sentence."""
    while error.__cause__ is not None:
        error = error.__cause__
    lines = str(error).strip().splitlines()
    text = lines[0][:300] if lines else type(error).__name__
    return text if text.endswith((".", "!", "?")) else f"{text}."
