"""The folder of a transfer: what decides it, which of its phases are over, and whether their files are still theirs."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lrft.core import stop
from lrft.files.json import SUM, own_sum, parse_object, read_object, read_summed, with_sum
from lrft.files.read import LINES, read_bytes
from lrft.files.records import Record
from lrft.files.sums import sum_of
from lrft.files.write import write_file
from lrft.registry.errors import DamagedFile, MissingFile, UsageError
from lrft.registry.json import Json

ABOUT, DONE, RESULT = "transfer.json", "done.json", "result.json"
OUTPUTS = "outputs.jsonl"  # what the source answered
FREE = ("threshold",)  # may change until something is accepted


class About(Record):
    """transfer.json, with what decides the transfer."""

    day: str | None = None


class Done(Record):
    """File -> its sum, of the phases that are over."""

    files: dict[str, str]


class Phases:
    """Names files of one transfer at `path`.

    Raises:
        UsageError: what is there is something else.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def claim(self, about: Mapping[str, Json], begun: str) -> dict[str, Any]:
        """Begin the folder, or see that it is of this command; returns what decides it, the day that it began included.

        Args:
            about: what decides the result.
            begun: the day, which stays that of the first time.
        """
        file = self.path / ABOUT
        if not file.is_file():
            if self.path.exists() and (not self.path.is_dir() or any(map(_counts, self.path.iterdir()))):
                raise UsageError(
                    f"--out {self.path}: is there already and holds no transfer; give another folder"
                )
            return self._write_about({**about, "day": begun})
        before = read_summed(file, About, self.path)
        for key, value in about.items():
            if before.get(key) != value and not (key in FREE and not (self.path / OUTPUTS).exists()):
                raise UsageError(
                    f"--out {self.path}: was begun with {key} {json.dumps(before.get(key))}, not {json.dumps(value)}; "
                    "give another folder"
                )
        now = {**about, "day": before.get("day", begun)}
        return self._write_about(now) if now != before else now

    def _write_about(self, about: dict[str, Json]) -> dict[str, Any]:
        write_file(self.path / ABOUT, json.dumps(with_sum(about), indent=2) + "\n", f"--out {self.path}")
        return about

    def is_over(self, name: str) -> bool:
        """Whether the phase that ends with this file is over.

        Raises:
            UsageError: the file was changed since.
        """
        if (wanted := self._done().get(name)) is None:
            return False
        try:
            found = sum_of(read_bytes(self.path / name, LINES))["sha256"]
        except MissingFile:
            found = ""
        if found != wanted:
            raise UsageError(
                f"{self.path / name}: is not what was written; put it back, or begin anew in another folder"
            )
        return True

    def end(self, name: str, content: str | None = None) -> None:
        """Write the file that ends a phase, and that it is over.

        Args:
            content: of the file; None where it grew line by line and is whole.
        """
        file = self.path / name
        with stop.held():
            if content is not None:
                write_file(file, content, f"--out {self.path}: {name}")
            found = sum_of(read_bytes(file, LINES))["sha256"]
            done: dict[str, Json] = {**self._done(), name: found}
            write_file(
                self.path / DONE, json.dumps(with_sum({"files": done}), indent=2) + "\n", f"--out {self.path}"
            )

    def lines(self, name: str, kind: type[Record] | None = None) -> list[dict[str, Any]]:
        """The objects of a file of a phase that is over.

        Raises:
            DamagedFile: one is not of that kind.
        """
        file = self.path / name
        found = read_bytes(file, LINES).split(b"\n")[:-1]
        return [parse_object(line, file.with_name(f"{name}:{k}"), kind) for k, line in enumerate(found, 1)]

    def _done(self) -> dict[str, str]:
        try:
            found = read_object(self.path / DONE, Done)
        except MissingFile:
            return {}
        except DamagedFile as error:
            raise UsageError(f"{error}; begin anew in another folder") from None
        if found.get(SUM) != own_sum(found):
            raise UsageError(f"{self.path / DONE}: was changed; begin anew in another folder")
        files: dict[str, str] = found["files"]
        return files


def _counts(path: Path) -> bool:
    """Whether a file of a folder is more than what a kill in the midst of the first write leaves."""
    return path.suffix != ".tmp"


def as_lines(rows: list[dict[str, Json]]) -> str:
    """The text of a .jsonl file."""
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
