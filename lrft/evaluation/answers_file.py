"""A file of answers that grows by whole lines, in the order of the prompts, and is gone on with after a kill."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

from lrft.files.growing import GrowingFile
from lrft.files.json import SUM, own_sum, parse_object, read_object, with_sum
from lrft.files.read import LINES, read_bytes
from lrft.files.records import Record
from lrft.files.write import remove_file, write_file
from lrft.registry.errors import DamagedFile, UsageError
from lrft.registry.json import Json

ABOUT = ".about.json"  # beside the file, what decides its lines
WRITTEN = "written"  # what it says of lines that have no sums of their own


class Line(Record):
    """Of any such file: the row that it is of, and, in a file that is read again, its own sum."""

    row: int
    sha256: str | None = None


class AnswerLine(Line):
    """The answer to a prompt."""

    output: str
    stopped: bool


class AnswersFile:
    """One process at a time has it open.

    Args:
        path: the .jsonl file, line k of which is row k.
        kind: of the lines of a file that lrft reads again, each of which keeps its sum; None where they are only shown.

    Attributes:
        done: lines that were there when it was opened.
        written: lines that are there now.

    Raises:
        UsageError: the name does not end in .jsonl.
    """

    def __init__(self, path: Path, kind: type[Line] | None = None) -> None:
        if path.suffix != ".jsonl":
            raise UsageError(f"--out {path}: answers are JSON, one a line; give a name that ends in .jsonl")
        self.path, self._kind = path, kind
        self.about: dict[str, Json] = {}
        self.done = 0
        self.written = 0
        self._known = hashlib.sha256()  # of all lines that have no sums of their own
        self._file = GrowingFile(path, f"--out {path}", "; the same command goes on then")

    def open(self, about: Mapping[str, Json], rows: int) -> None:
        """Lock the file, see that its lines are of this command, and cut off one that a kill left unfinished.

        Args:
            about: what decides the answers; plain values. Written beside the file before its first line.
            rows: that the file will have in the end.

        Raises:
            UsageError: it holds something else, or another process is writing it.
            WriteError: it cannot be written.
        """
        self.about = dict(about)
        existed = self.path.exists()
        if not self._file.open():
            raise UsageError(f"--out {self.path}: another process is writing it; give another name")
        try:
            self._claim(existed, rows)
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
        said = [with_sum(answer) for answer in answers] if self._kind else answers
        text = "".join(json.dumps(answer, ensure_ascii=False) + "\n" for answer in said)
        self._file.append(text)
        self.written += len(answers)
        self._know(text.encode())

    def lines(self) -> Iterator[dict[str, Any]]:
        """What every line holds, in order.

        Raises:
            UsageError: one is not what was written.
        """
        for index, line in enumerate(self._content().splitlines()):
            yield self._parsed(index, line)

    def _claim(self, existed: bool, rows: int) -> None:
        beside, text = self._beside, self._content()
        if text or (existed and not beside.is_file()):
            known = self._check_about(beside)
            whole = text[: text.rfind(b"\n") + 1]  # what is after it was cut by a kill
            self.done = self.written = self._count(whole, rows)
            self._check_written(known, whole)
            self._file.cut(len(whole))
            self._known.update(whole)
            return
        self._write_about()

    def _know(self, data: bytes) -> None:
        """Remember the sum of all lines where they have none; a kill before this leaves that of the lines before."""
        if self._kind is None:
            self._known.update(data)
            self._write_about({WRITTEN: {"bytes": self._file.size, SUM: self._known.hexdigest()}})

    def _write_about(self, more: Mapping[str, Json] = MappingProxyType({})) -> None:
        text = json.dumps({**self.about, **more}, indent=2) + "\n"
        write_file(self._beside, text, f"--out {self.path}: {self._beside.name}")

    @property
    def _beside(self) -> Path:
        return self.path.with_name(self.path.name + ABOUT)

    def _check_written(self, known: Json, whole: bytes) -> None:
        """Refuse a file whose lines are not those that were written; of one that is shorter by now nothing is known."""
        if not isinstance(known, dict) or not isinstance(size := known.get("bytes"), int):
            return
        if 0 <= size <= len(whole) and hashlib.sha256(whole[:size]).hexdigest() != known.get(SUM):
            raise UsageError(
                f"--out {self.path}: its first {size:,} bytes are not those that were written, so the file was "
                "changed; remove it to begin anew"
            )

    def _check_about(self, beside: Path) -> Json:
        """Refuse lines that another model, other settings or other prompts gave; what is known of what was written."""
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
        return before.get(WRITTEN)

    def _content(self) -> bytes:
        return read_bytes(self.path, LINES)

    def _count(self, whole: bytes, rows: int) -> int:
        lines = whole.splitlines()
        if len(lines) > rows:
            raise UsageError(
                f"{self.path}:{rows + 1}: is a line too many for {rows} rows, so the file was changed; remove it to "
                "begin anew"
            )
        for index, line in enumerate(lines):
            self._parsed(index, line)
        return len(lines)

    def _parsed(self, index: int, line: bytes) -> dict[str, Any]:
        where = self.path.with_name(f"{self.path.name}:{index + 1}")
        try:
            found = parse_object(line, where, self._kind or Line)
            same = found.get(SUM) in (None, own_sum(found))
        except DamagedFile:
            same, found = False, {}
        if not same or found["row"] != index:
            raise UsageError(
                f"{where}: is not the answer to row {index}, so the file was changed; remove it to begin anew"
            )
        return found
