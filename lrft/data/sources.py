"""Rows from files, folders and hub data sets."""

from __future__ import annotations

import hashlib
import json
import re
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from itertools import chain, count
from pathlib import Path

from lrft.core import stop
from lrft.data.example import Row
from lrft.data.files import Role, locate_files, near_files, suffix_of
from lrft.data.hub import offline_if_unreachable
from lrft.data.json_rows import is_large
from lrft.data.order import permutation
from lrft.data.parquet_rows import FiniteRows, ParquetRows, finite
from lrft.data.rows import Indexed, joined
from lrft.data.rows import Rows as Rows
from lrft.data.text_files import TABLE_READERS, TEXT_READERS, read_plain_lines, table_of
from lrft.data.text_lines import look
from lrft.registry.config import Source
from lrft.registry.errors import DataError, first_line
from lrft.registry.own_format import own_format
from lrft.registry.source import MixedSource, each_source, source_keys

HUB_SPLIT = {"train": "train", "eval": "test"}
HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")


def read_sources(
    given: Source | Sequence[Source], role: Role, seed: int = 0, limit: int | None = None
) -> Rows:
    """The rows of `data.train` or `data.eval`: of one source, or of several, one after another.

    Args:
        seed: of the rows that `take` draws.
        limit: only so many rows of each source, where nothing is drawn.

    Raises:
        DataError: as `read_rows`.
    """
    key = f"data.{role}"
    keys = source_keys(key, given)
    found = [
        replace(read_rows(_limited(source, limit), role, seed, at), format=own_format(source))
        for at, source in zip(keys, each_source(given), strict=True)
    ]
    if len(found) == 1 and not _is_mixed(given):
        return found[0]
    return joined(found, key, labels([rows.origin for rows in found]))


def _is_mixed(given: Source | Sequence[Source]) -> bool:
    """Whether how much an epoch has of some source is said."""
    mixed = [source for source in each_source(given) if isinstance(source, MixedSource)]
    return any((source.weight, source.cap, source.repeat) != (None, None, None) for source in mixed)


def labels(origins: Sequence[str]) -> list[str]:
    """A short name for each source, no two alike: `gsm8k` of data/gsm8k.jsonl, `gsm8k-2` of another one."""
    made: list[str] = []
    for origin in origins:
        path = Path(origin.partition(":")[0])
        name = path.name.removesuffix(suffix_of(path) or "")
        name = path.parent.name if name in ("*", "train", "test", "") else name
        short = re.sub(r"[^\w.-]+", "_", name).strip("_.") or "rows"
        numbered = (f"{short}-{number}" for number in count(2))
        made.append(next(name for name in chain([short], numbered) if name not in made))
    return made


def read_rows(source: Source, role: Role, seed: int = 0, key: str | None = None) -> Rows:
    """The rows of one source.

    A path that exists is read as a file, or as a folder: its files of a split, or where none is named after a split,
    all of them. A pattern is all files that it matches, in the order of their names. Anything that looks like a hub
    id is loaded from the hub.

    Args:
        seed: of the rows that `take` draws.
        key: of the source in the recipe, for messages; by default `data.train` or `data.eval`.

    Raises:
        DataError: nothing there, malformed (with file and line), or no rows. Of a file that is not held in memory, a
            malformed row is told when it is asked for.
    """
    key = key or f"data.{role}"
    files = locate_files(source, role, key)
    if not files and _is_hub_id(source.source):
        rows = _read_hub(source, role, key)
    elif not files:
        raise DataError(
            f"{key}.source: no file {source.source}{near_files(Path(source.source).expanduser())}"
        )
    else:
        rows = _read_files(files, source, key)
    if source.take is None or source.take >= len(rows):
        return rows
    return rows.chosen(sorted(permutation(len(rows), seed, 0, "take")[: source.take]))


def _limited(source: Source, limit: int | None) -> Source:
    if limit is None or source.take is not None:
        return source
    return source.model_copy(update={"limit": min(limit, source.limit or limit)})


def _read_files(files: Sequence[Path], source: Source, key: str) -> Rows:
    for name in ("name", "revision", "stream"):
        if getattr(source, name) is not None:
            raise DataError(f"{key}.{name}: {source.source} is local; the key is for hub data sets")
    parts: list[Rows] = []
    left = source.limit
    for path in files:
        stop.poll()
        part = _read_file(path, key, left, source)
        if not len(part) and len(files) == 1:
            raise DataError(f"{path}:1: the file has no rows")
        parts.append(part)
        left = None if left is None else left - len(part)
        if left == 0:
            break
    if len(files) == 1:
        return parts[0]
    rows = joined([part for part in parts if len(part)], source.source)
    if not len(rows):
        raise DataError(f"{key}.source: the {len(files)} files of {source.source} have no rows")
    return rows


def _read_file(path: Path, key: str, limit: int | None, source: Source) -> Rows:
    suffix, by_line = suffix_of(path), source.row == "line"
    if suffix is None:
        known = ", ".join((*TEXT_READERS, ".parquet"))
        raise DataError(f"{key}.source: {path} is of no known kind; files end in {known}")
    if by_line and not suffix.startswith(".txt"):
        raise DataError(f"{key}.row: line is about .txt files, and {path} is none; remove the key")
    table = table_of(path, suffix, source, key)
    try:
        if suffix != ".parquet":
            look(path, suffix.split(".")[1] in ("json", "txt") and not by_line)
        with path.open("rb") as file:
            fingerprint = hashlib.file_digest(file, "sha256").hexdigest()
        if suffix == ".parquet":
            return Rows(finite(_read_parquet(path, limit), path), str(path), fingerprint, filled=True)
        if by_line:
            rows, lines = read_plain_lines(path, limit, table)
        elif table is not None:
            rows, lines = TABLE_READERS[suffix](path, limit, table)
        else:
            rows, lines = TEXT_READERS[suffix](path, limit)
    except OSError as error:
        raise DataError(f"{path}: {error.strerror or error}") from error
    return Rows(rows, str(path), fingerprint, lines)


def _read_parquet(path: Path, limit: int | None) -> Indexed[Row]:
    import datasets

    # A cache of its own, gone when the rows are in memory, can never be served for a file that has changed.
    bars = datasets.is_progress_bar_enabled()
    datasets.disable_progress_bars()
    try:
        if is_large(path):
            return ParquetRows(path, limit)
        with tempfile.TemporaryDirectory() as cache, stop.at_once():
            rows = datasets.Dataset.from_parquet(str(path), cache_dir=cache, keep_in_memory=True)
    except Exception as error:  # pyarrow's and datasets' many kinds; the cause is what helps
        if "corresponds to no data" in str(error):
            return []
        raise DataError(f"{path}: no readable parquet file. {_innermost(error)}") from error
    finally:
        if bars:
            datasets.enable_progress_bars()
    kept: Sequence[Row] = rows if limit is None else rows.select(range(min(limit, len(rows))))
    return kept


def _read_hub(source: Source, role: Role, key: str) -> Rows:
    import datasets

    if said := next((k for k in ("header", "separator") if k in source.model_fields_set), None):
        raise DataError(
            f"{key}.{said}: is about files, and {source.source} is a hub data set; remove the key"
        )
    offline_if_unreachable()
    split = source.split or HUB_SPLIT[role]
    place, streams = (source.source, source.name), source.stream is not None
    try:
        with stop.at_once():
            rows = datasets.load_dataset(*place, split=split, revision=source.revision, streaming=streams)
            if source.stream is not None:
                rows = list(rows.take(min(source.stream, source.limit or source.stream)))
    except Exception as error:  # network, missing set, configuration or split: told apart by their message
        remedy = "A stream needs the network; without `stream`," if streams else "Without network,"
        raise DataError(
            f"{key}.source: no file {source.source!r}, and the hub did not give it (split {split!r}): "
            f"{_innermost(error)} {remedy} download it first and keep HF_HOME, or name a file."
        ) from error
    if source.limit is not None and not streams:
        rows = rows.select(range(min(source.limit, len(rows))))
    if not len(rows):
        raise DataError(f"{key}.source: {source.source}, split {split!r}, has no rows")
    fingerprint = _digest(rows) if streams else rows._fingerprint
    revision = f"@{source.revision}" if source.revision else ""
    name = f"{source.source}:{split}"
    if streams or "float" in str(rows.features):
        rows = FiniteRows(rows, name)
    return Rows(rows, name, f"{fingerprint}{revision}", filled=True)


def _digest(rows: Sequence[Row]) -> str:
    """sha256 of the rows themselves: a stream has no fingerprint of what was taken from it."""
    digest = hashlib.sha256()
    for row in rows:
        stop.poll()
        digest.update(json.dumps(row, sort_keys=True, default=str).encode())
    return digest.hexdigest()


def _is_hub_id(source: str) -> bool:
    return bool(HUB_ID.fullmatch(source)) and suffix_of(Path(source)) is None


def _innermost(error: BaseException) -> str:
    """The innermost cause's first line, as a sentence."""
    while error.__cause__ is not None:
        error = error.__cause__
    text = first_line(error, 300)
    return text if text.endswith((".", "!", "?")) else f"{text}."
