"""What a search has found so far, on the disk: one line an arm, in the order in which the arms were proposed."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lrft.files.growing import GrowingFile
from lrft.files.json import parse_object, read_object, summed, with_sum
from lrft.files.made_records import AskedRecord
from lrft.files.own import check_own
from lrft.files.read import read_bytes
from lrft.files.records import Record
from lrft.files.write import write_file
from lrft.lab.runs.report import names_of
from lrft.registry.errors import DamagedFile, UsageError
from lrft.registry.json import Json

LINES, ASKED, BEST, STEM = "arms.jsonl", "asked.json", "best.yaml", "search"


class Line(Record):
    """An arm that is over.

    Attributes:
        genes: its configuration, as the search knows it.
        values: key -> what was set.
        failure: why there is no score: what the run said that diverged, or did not fit into memory.
        score: of the metric.
        losses: of the last step, in training and held out, None where there is none.
        trainable: numbers that train before the first step.
        bytes: weights, adapter, gradients and optimizer state before the first step.
        step_seconds: the median over the steps.
        run: its folder, seen from the folder of the search.
    """

    arm: int
    label: str
    genes: list[int | float]
    values: dict[str, Any]
    failure: str | None
    score: float | None
    loss: float | None
    eval_loss: float | None
    trainable: int
    bytes: int
    step_seconds: float | None
    seconds: float | None
    run: str


class State:
    """The lines of a search that is begun or gone on with in a folder, which nobody else searches in meanwhile.

    Args:
        asked: all that decides which arm comes when; compared with what the search was begun with.

    Raises:
        UsageError: another search was begun here, one is at work, or somebody else's files have the names of ours.
        DamagedFile: what is here was not written so.
    """

    def __init__(self, out: Path, asked: Mapping[str, Json]) -> None:
        self.out = out
        self.lines: list[Line] = []
        if not _has(out / LINES):
            check_own(out, ASKED, AskedRecord, [*names_of(STEM), BEST], "a search")
        name = f"--out {out}: {LINES}"
        self._file = GrowingFile(out / LINES, name, "; the same command goes on")
        if not self._file.open():
            raise UsageError(f"--out {out}: a search is at work here; wait for it, or choose another folder")
        try:
            self._begin(json.loads(json.dumps(asked)))
        except BaseException:
            self.close()
            raise

    def add(self, line: Line) -> None:
        """Keep a line, which is on the disk when this comes back.

        Raises:
            WriteError: the disk is full or gone.
        """
        assert line.arm == len(self.lines), "arms are kept in their order"
        self._file.append(json.dumps(with_sum(line.model_dump()), allow_nan=False) + "\n")
        self.lines.append(line)

    def close(self) -> None:
        """Let others search here."""
        self._file.close()

    def _begin(self, asked: dict[str, Json]) -> None:
        known = self.out / ASKED
        if not known.is_file():
            if self._file.size:
                raise DamagedFile(known, f"is missing beside {LINES}", "restore it, or choose another --out")
            write_file(known, json.dumps(asked, indent=2) + "\n", f"--out {self.out}: {ASKED}")
            return
        before = read_object(known)
        for key in dict.fromkeys([*asked, *before]):
            if before.get(key) != asked.get(key):
                raise UsageError(
                    f"--out {self.out}: the search here was begun with another {key} ({_shown(before.get(key))}, now "
                    f"{_shown(asked.get(key))}); give the same, or choose another folder"
                )
        self.lines = self._read()

    def _read(self) -> list[Line]:
        """The lines that were written whole; what a kill left of another is cut off."""
        path = self.out / LINES
        content = read_bytes(path)
        whole = content.rpartition(b"\n")[0]
        if len(content) > (kept := len(whole) + 1 if whole else 0):
            self._file.cut(kept)
        lines: list[Line] = []
        for text in whole.split(b"\n") if whole else []:
            line = Line.model_validate(summed(parse_object(text, path), path, Line))
            if line.arm != len(lines):
                raise DamagedFile(path, f"has arm {line.arm} where {len(lines)} is meant")
            lines.append(line)
        return lines


def _has(path: Path) -> bool:
    """Whether a file holds anything."""
    return path.is_file() and path.stat().st_size > 0


def _shown(value: object) -> str:
    text = json.dumps(value)
    return text if len(text) <= 60 else f"{text[:56]}..."
