"""Sizes and sums of what a folder holds: written beside the files, compared before any of them is believed."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from io import BufferedReader
from pathlib import Path
from typing import TypedDict

from lrft.files.json import own_sum, read_object, with_sum
from lrft.files.read import digest_of, open_regular
from lrft.files.records import FolderManifest
from lrft.registry.errors import DamagedFile, MissingFile
from lrft.registry.json import Json

MANIFEST = "manifest.json"
FORMAT = 2


class Sum(TypedDict):
    """A file's size and sum."""

    bytes: int
    sha256: str


def sum_of(content: bytes) -> Sum:
    """Of what a file holds, or will."""
    return {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}


def plain_sum(entry: Sum) -> dict[str, Json]:
    """As a value of a record."""
    return {"bytes": entry["bytes"], "sha256": entry["sha256"]}


def file_sum(path: Path, within: Path | None = None) -> Sum:
    """Of a file, read piece by piece.

    Raises:
        MissingFile, DamagedFile: it cannot be read.
    """
    with open_regular(path, within=within) as file:
        return {"bytes": _size(file), "sha256": digest_of(file, path)}


def manifest_bytes(record: Mapping[str, Json]) -> bytes:
    """The text of a manifest, with its own sum."""
    return (json.dumps(with_sum(record), indent=1) + "\n").encode()


def folder_manifest(folder: Path) -> bytes:
    """What manifest.json of a folder holds: the sums of all other files in it, of those below it too."""
    names = sorted(path for path in folder.rglob("*") if path.is_file() and path.name != MANIFEST)
    files: dict[str, Json] = {
        path.relative_to(folder).as_posix(): plain_sum(file_sum(path)) for path in names
    }
    return manifest_bytes({"format": FORMAT, "files": files})


def folder_fault(folder: Path) -> str:
    """What is wrong with a folder that was written once, or an empty string.

    One without a manifest was made by an older lrft, or by somebody else, and nothing is known of it.
    """
    try:
        found = read_object(folder / MANIFEST, FolderManifest, within=folder)
    except MissingFile:
        return "" if folder.is_dir() else "is missing"
    except DamagedFile as error:
        return f"{MANIFEST} {error.problem}"
    if found.get("sha256") != own_sum(found):
        return f"{MANIFEST} is damaged (its own sha256 is another)"
    for name, entry in found["files"].items():
        try:
            if why := difference(folder / name, entry, folder):
                return f"{name} {why}"
        except DamagedFile as error:
            return f"{name} {error.problem}"
    return ""


def is_covered(folder: Path) -> bool:
    """Whether a folder has a manifest."""
    return (folder / MANIFEST).exists()


def difference(path: Path, entry: Sum, within: Path | None = None) -> str:
    """How a file differs from its entry in a manifest; the sizes are compared before anything is read.

    Raises:
        MissingFile, DamagedFile: it cannot be read.
    """
    with open_regular(path, within=within) as file:
        return open_difference(file, path, entry)


def open_difference(file: BufferedReader, path: Path, entry: Sum) -> str:
    """The same of an open file.

    Raises:
        DamagedFile: it cannot be read.
    """
    if (size := _size(file)) != entry["bytes"]:
        return _of_size(size, entry)
    return "" if digest_of(file, path) == entry["sha256"] else CHANGED


def content_difference(content: bytes, entry: Sum) -> str:
    """The same of a file that was read."""
    if len(content) != entry["bytes"]:
        return _of_size(len(content), entry)
    return "" if hashlib.sha256(content).hexdigest() == entry["sha256"] else CHANGED


CHANGED = "is damaged (its sha256 is not the manifest's)"


def _of_size(size: int, entry: Sum) -> str:
    word = "longer" if size > entry["bytes"] else "shorter"
    return f"is damaged ({size:,} bytes, {word} than the {entry['bytes']:,} that were written)"


def _size(file: BufferedReader) -> int:
    return file.seek(0, 2)
