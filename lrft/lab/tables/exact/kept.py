"""Rows that were counted before: kept beside the tables by all that decides their numbers."""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
from collections.abc import Iterable
from functools import cache
from pathlib import Path
from typing import cast

from lrft.files.json import read_summed, with_sum
from lrft.files.write import write_file
from lrft.lab.runs.digest import code_digest
from lrft.recipe.resolved import recipe_hash
from lrft.recipe.schema import Recipe
from lrft.registry.errors import DamagedFile, LrftError
from lrft.registry.json import Json

FILE = ".rows.json"
COUNTING = ("lrft.lab.tables.exact.metrics",)
LIBRARIES = ("torch", "transformers", "bitsandbytes")  # they build what is counted


class Kept:
    """Measured rows, table by table, in one file that is written whole after each row.

    Args:
        folder: where the tables are written; None to keep nothing.
        fresh: forget what is there.
    """

    def __init__(self, folder: Path | None = None, fresh: bool = False) -> None:
        self.path = None if folder is None else folder / FILE
        self.tables: dict[str, dict[str, dict[str, float]]] = {}
        if self.path is not None and self.path.is_file() and not fresh:
            self.tables = _read(self.path)
        self.reused = 0

    def get(self, table: str, key: str) -> dict[str, float] | None:
        """The numbers of a row that was counted before."""
        found = self.tables.get(table, {}).get(key)
        self.reused += found is not None
        return found

    def put(self, table: str, key: str, values: dict[str, float]) -> None:
        """Keep a row.

        Raises:
            WriteError: the folder cannot be written.
        """
        self.tables.setdefault(table, {})[key] = values
        self._write()

    def close(self, table: str, keys: Iterable[str]) -> None:
        """The table is finished: its rows of other recipes, code or data are forgotten."""
        kept = set(keys)
        rows = self.tables.get(table, {})
        if rows.keys() - kept:
            self.tables[table] = {key: values for key, values in rows.items() if key in kept}
            self._write()

    def _write(self) -> None:
        if self.path is None:
            return
        text = json.dumps(with_sum(cast("dict[str, Json]", self.tables)), indent=1) + "\n"
        write_file(self.path, text, f"--out {self.path.parent}: {FILE}")


def row_key(recipe: Recipe, metrics: Iterable[str], trusted: bool = False) -> str:
    """sha256 (hex) of what decides a row's numbers: recipe, code, libraries, configuration files, what is measured.

    Code that comes with the model counts where it may run.
    """
    decisive = [
        recipe_hash(recipe),
        code_digest(recipe, COUNTING),
        _versions(),
        _files(recipe.model.name, "*.json"),
        sorted(metrics),
        *([_files(recipe.model.name, "**/*.py")] if trusted else []),
    ]
    return hashlib.sha256(json.dumps(decisive).encode()).hexdigest()


@cache
def _versions() -> list[str | None]:
    found: list[str | None] = []
    for name in LIBRARIES:
        try:
            found.append(importlib.metadata.version(name))
        except importlib.metadata.PackageNotFoundError:
            found.append(None)
    return found


def _files(model: str, pattern: str) -> str:
    """A digest of the model's files of such names, or of its name where it is no folder."""
    digest = hashlib.sha256(b"" if Path(model).is_dir() else model.encode())
    for path in sorted(Path(model).glob(pattern)):
        digest.update(f"{path.name} {hashlib.sha256(path.read_bytes()).hexdigest()}\n".encode())
    return digest.hexdigest()


def _read(path: Path) -> dict[str, dict[str, dict[str, float]]]:
    try:
        return read_summed(path, dict[str, dict[str, dict[str, float]]])
    except DamagedFile as error:
        raise LrftError(f"{path}: cannot be read ({error.problem}); remove it, or add --fresh") from None
