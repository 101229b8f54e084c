"""A file of answers that grows by whole lines, in the order of the prompts, and is gone on with after a kill."""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO

from lrft.registry.errors import LrftError, UsageError
from lrft.registry.json import Json

ABOUT = ".about.json"  # beside the file, what decides its lines


class AnswersFile:
    """One process at a time has it open.

    Args:
        path: the .jsonl file, line k of which is row k.

    Attributes:
        done: lines that were there when it was opened.
        written: lines that are there now.

    Raises:
        UsageError: the name does not end in .jsonl.
    """

    def __init__(self, path: Path) -> None:
        if path.suffix != ".jsonl":
            raise UsageError(f"--out {path}: answers are JSON, one a line; give a name that ends in .jsonl")
        self.path = path
        self.about: dict[str, Json] = {}
        self.done = 0
        self.written = 0
        self._file: IO[bytes] | None = None

    def open(self, about: Mapping[str, Json]) -> None:
        """Lock the file, see that its lines are of this command, and cut off one that a kill left unfinished.

        Args:
            about: what decides the answers; plain values. Written beside the file before its first line.

        Raises:
            UsageError: it holds something else, or another process is writing it.
            LrftError: it cannot be written.
        """
        self.about = dict(about)
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            existed = self.path.exists()
            self._file = self.path.open("ab+")
        except OSError as error:
            raise LrftError(f"--out {self.path}: cannot be written ({error.strerror})") from error
        try:
            self._claim(self._file, existed)
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Let others write."""
        if self._file is not None:
            self._file.close()
            self._file = None

    def append(self, answers: Sequence[Mapping[str, Json]]) -> None:
        """Write these lines, and come back when they are on the disk.

        Raises:
            LrftError: the disk is full or gone; the lines before stay, and the command goes on there.
        """
        assert self._file is not None, "open it first"
        text = "".join(json.dumps(answer, ensure_ascii=False) + "\n" for answer in answers)
        try:
            self._file.write(text.encode())
            self._file.flush()
            os.fsync(self._file.fileno())
            self.written += len(answers)
        except OSError as error:
            raise LrftError(
                f"--out {self.path}: could not be written ({error.strerror}); the same command goes on when it can"
            ) from error

    def _claim(self, file: IO[bytes], existed: bool) -> None:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise UsageError(f"--out {self.path}: another process is writing it; give another name") from None
        beside = self.path.with_name(self.path.name + ABOUT)
        file.seek(0)
        text = file.read()
        if text or (existed and not beside.is_file()):
            self._check_about(beside)
            whole = text[: text.rfind(b"\n") + 1]  # what is after it was cut by a kill
            self.done = self.written = self._count(whole)
            file.truncate(len(whole))
            file.seek(0, os.SEEK_END)
            return
        scratch = beside.with_name(f".{beside.name}.{os.getpid()}.tmp")
        scratch.write_text(json.dumps(self.about, indent=2) + "\n", encoding="utf-8")
        os.replace(scratch, beside)

    def _check_about(self, beside: Path) -> None:
        """Refuse lines that another model, other settings or other prompts gave."""
        try:
            before = json.loads(beside.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            raise UsageError(
                f"--out {self.path}: is there already, and no {beside.name} says that its lines are answers of this "
                "command; give another name"
            ) from None
        for key, value in self.about.items():
            if before.get(key) != value:
                raise UsageError(
                    f"--out {self.path}: its lines were generated with {key} {json.dumps(before.get(key))}, not "
                    f"{json.dumps(value)}; give another name, or remove it to begin anew"
                )

    def _count(self, whole: bytes) -> int:
        lines = whole.splitlines()
        for index, line in enumerate(lines):
            try:
                row = json.loads(line)["row"]
            except (ValueError, TypeError, KeyError):
                row = None
            if row != index:
                raise UsageError(
                    f"{self.path}:{index + 1}: is not the answer to row {index}, so the file was changed; remove it to "
                    "begin anew"
                )
        return len(lines)
