"""A file of answers that grows by whole lines, in the order of the prompts, and is gone on with after a kill."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from lrft.files.growing import GrowingFile
from lrft.files.json import read_object
from lrft.files.write import remove_file, write_file
from lrft.registry.errors import DamagedFile, UsageError
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
        self._file = GrowingFile(path, f"--out {path}", "; the same command goes on then")

    def open(self, about: Mapping[str, Json]) -> None:
        """Lock the file, see that its lines are of this command, and cut off one that a kill left unfinished.

        Args:
            about: what decides the answers; plain values. Written beside the file before its first line.

        Raises:
            UsageError: it holds something else, or another process is writing it.
            WriteError: it cannot be written.
        """
        self.about = dict(about)
        existed = self.path.exists()
        if not self._file.open():
            raise UsageError(f"--out {self.path}: another process is writing it; give another name")
        try:
            self._claim(existed)
        except BaseException:
            if not existed:  # or the same command would find answers that it knows nothing of
                remove_file(self.path)
            self.close()
            raise

    def close(self) -> None:
        """Let others write."""
        self._file.close()

    def append(self, answers: Sequence[Mapping[str, Json]]) -> None:
        """Write these lines, and come back when they are on the disk.

        Raises:
            WriteError: the disk is full or gone; the lines before stay, and the command goes on there.
        """
        self._file.append("".join(json.dumps(answer, ensure_ascii=False) + "\n" for answer in answers))
        self.written += len(answers)

    def _claim(self, existed: bool) -> None:
        beside = self.path.with_name(self.path.name + ABOUT)
        text = self.path.read_bytes()
        if text or (existed and not beside.is_file()):
            self._check_about(beside)
            whole = text[: text.rfind(b"\n") + 1]  # what is after it was cut by a kill
            self.done = self.written = self._count(whole)
            self._file.cut(len(whole))
            return
        write_file(beside, json.dumps(self.about, indent=2) + "\n", f"--out {self.path}: {beside.name}")

    def _check_about(self, beside: Path) -> None:
        """Refuse lines that another model, other settings or other prompts gave."""
        try:
            before = read_object(beside)
        except DamagedFile:
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
            except (ValueError, TypeError, KeyError, RecursionError):
                row = None
            if row != index:
                raise UsageError(
                    f"{self.path}:{index + 1}: is not the answer to row {index}, so the file was changed; remove it to "
                    "begin anew"
                )
        return len(lines)
