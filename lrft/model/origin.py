"""Which hub model a base is, where it is known: a path of one machine says nothing on another."""

from __future__ import annotations

import importlib.util
import json
import re
from contextlib import suppress
from functools import cache
from pathlib import Path

from lrft.files.failure import WriteError
from lrft.files.json import read_object
from lrft.files.write import write_file
from lrft.model import gguf
from lrft.registry.errors import DamagedFile

HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
REPOSITORY = re.compile(r"https?://(?:www\.)?huggingface\.co/([\w.-]+/[\w.-]+?)(?:\.git|/.*)?")
CACHED = re.compile(r"models--([\w.-]+?)--([\w.-]+)")
SAVED_STEP = re.compile(r"(checkpoint|step|epoch)[-_]?\d+")
# Not `base_model`, nor that of a card: there stands what a model was made from, which is another model.
SOURCES = ("general.source.repo_url", "general.source.url")


def hub_id(name: str) -> str | None:
    """The hub id of the recipe's `model.name`; None where it is a file or folder of which none is known.

    Looked for in the path (a hub cache), a GGUF file's metadata, and config.json's `_name_or_path`.
    """
    path = gguf.locate(name)
    if path is not None:
        return _cached(path) or _in_gguf(path)
    if not _is_local(name):
        return name
    folder = Path(name)
    return _cached(folder) or _in_config(folder)


def loadable_name(name: str) -> str:
    """What loads the very same weights elsewhere, where the path or file says for sure; else the name as it is."""
    path = gguf.locate(name)
    sure = (
        _cached(path) or _in_gguf(path)
        if path is not None
        else _cached(Path(name))
        if _is_local(name)
        else None
    )
    return sure or name


def public_name(name: str) -> str:
    """The hub id, or the last part of a path."""
    return hub_id(name) or Path(name).name


def _is_local(name: str) -> bool:
    return Path(name).is_absolute() or name.startswith((".", "~")) or Path(name).is_dir()


def _cached(path: Path) -> str | None:
    for part in (*path.parts, *path.resolve().parts):
        if found := CACHED.fullmatch(part):
            return f"{found[1]}/{found[2]}"
    return None


@cache
def _in_gguf(path: Path) -> str | None:
    """What its metadata says, noted beside what else is kept of the file: reading them takes seconds."""
    if importlib.util.find_spec("gguf") is None:
        return None
    folder = gguf.folder_of(path)
    noted = folder.with_name(f"{folder.name}.origin.json")
    try:
        said = read_object(noted).get("repository")
        return said if isinstance(said, str) and HUB_ID.fullmatch(said) else None
    except DamagedFile:
        found = _read_gguf(path)
    if noted.parent.is_dir():
        with suppress(WriteError):  # the next one reads the file again
            write_file(noted, json.dumps({"repository": found}) + "\n")
    return found


def _read_gguf(path: Path) -> str | None:
    fields = gguf.fields_of(path)
    said = (REPOSITORY.fullmatch(str(fields[key])) for key in SOURCES if key in fields)
    return next((found[1] for found in said if found and HUB_ID.fullmatch(found[1])), None)


def _in_config(folder: Path) -> str | None:
    try:
        said = read_object(folder / "config.json").get("_name_or_path")
    except DamagedFile:
        return None
    return _plausible(said)


def _plausible(said: object) -> str | None:
    """A hub id, and no relative path that looks like one."""
    if not isinstance(said, str) or not HUB_ID.fullmatch(said) or Path(said).exists():
        return None
    return None if SAVED_STEP.fullmatch(said.partition("/")[2]) else said
