"""Which files a local source means: one, those of a pattern, or those of a folder."""

from __future__ import annotations

import re
from collections.abc import Sequence
from glob import iglob
from pathlib import Path
from typing import Literal

from lrft.registry.config import Source
from lrft.registry.did_you_mean import did_you_mean
from lrft.registry.errors import DataError
from lrft.registry.source import READABLE, is_glob

Role = Literal["train", "eval"]

SPLITS = {"train": ("train",), "eval": ("eval", "validation", "valid", "dev", "test")}
SHARD = re.compile(r"(.+)-(\d{5})-of-(\d{5})")


def locate_files(source: Source, role: Role, key: str) -> list[Path]:
    """The files of a source in order; none where it is no local one.

    Args:
        role: decides which split of a folder is meant.
        key: of the source in the recipe, for messages.

    Raises:
        DataError: a pattern that nothing matches, or a folder in which it is not plain what is meant.
    """
    path = Path(source.source).expanduser()
    if path.is_dir():
        return _in_folder(path, source, role, key)
    if path.exists():
        found = [path]
    elif not is_glob(source.source):
        return []
    else:
        found = [Path(name) for name in sorted(iglob(str(path), recursive=True)) if Path(name).is_file()]
        if not found:
            raise DataError(f"{key}.source: no file matches {source.source}")
    if source.split is not None:
        what = "a pattern" if is_glob(source.source) else "one file"
        raise DataError(f"{key}.split: {source.source} is {what} and has no splits; remove the key")
    return found


def suffix_of(path: Path) -> str | None:
    """What the name of a data file ends in; None of any other."""
    return next(
        (suffix for suffix in sorted(READABLE, key=len, reverse=True) if path.name.endswith(suffix)), None
    )


def near_files(path: Path) -> str:
    """What of the folder may have been meant by a name that is not there."""
    folder = path.parent
    if not folder.is_dir():
        return f"; the folder {folder} does not exist"
    files = [entry.name for entry in folder.iterdir() if entry.is_dir() or suffix_of(entry)]
    return did_you_mean(path.name, files)


def _in_folder(folder: Path, source: Source, role: Role, key: str) -> list[Path]:
    """The files of the wanted split, or all of a folder whose files are named after no split."""
    files = sorted(path for path in folder.iterdir() if path.is_file() and suffix_of(path))
    wanted = (source.split,) if source.split else SPLITS[role]
    for split in wanted:
        whole = [path for path in files if _stem(path) == split]
        shards = [path for path in files if _split(path) == split and path not in whole]
        if len(whole) > 1 or (whole and shards):
            names = ", ".join(path.name for path in [*whole, *shards][:9])
            raise DataError(f"{key}.source: {folder} holds {names}; name the file that is meant")
        if whole or shards:
            return whole or _complete(shards, folder, key)
    named = [path for path in files if _split(path) in (name for names in SPLITS.values() for name in names)]
    if files and not named and source.split is None:
        return _of_one_kind(files, folder, key)
    names = ", ".join(path.name for path in files[:9]) or "no data files"
    more = f" and {len(files) - 9} more" if len(files) > 9 else ""
    raise DataError(
        f"{key}.source: {folder} has no file called {' or '.join(wanted)}; it has {names}{more}; name the file, "
        "or a pattern that the files match"
    )


def _stem(path: Path) -> str:
    return path.name.removesuffix(suffix_of(path) or "")


def _split(path: Path) -> str:
    """The split that a file is of by its name: `train` of train.jsonl and of train-00000-of-00002.parquet."""
    shard = SHARD.fullmatch(_stem(path))
    return shard[1] if shard else _stem(path)


def _complete(shards: Sequence[Path], folder: Path, key: str) -> list[Path]:
    """The shards of a split, all of them there."""
    found = [match for path in shards if (match := SHARD.fullmatch(_stem(path)))]
    totals = {int(match[3]) for match in found}
    if len(totals) > 1 or [int(match[2]) for match in found] != list(range(max(totals))):
        raise DataError(
            f"{key}.source: {folder} has {len(found)} shards of {found[0][1]} where their names say "
            f"{max(totals)}; bring the others, or write a pattern that matches those that are meant"
        )
    return _of_one_kind(list(shards), folder, key)


def _of_one_kind(files: list[Path], folder: Path, key: str) -> list[Path]:
    kinds = sorted({suffix_of(path) or "" for path in files})
    if len(kinds) > 1:
        raise DataError(
            f"{key}.source: {folder} holds files of several kinds ({', '.join(kinds)}); write the pattern of those "
            f"that are meant, such as {folder}/*{kinds[0]}"
        )
    return files
