"""manifest.json of a run folder: the sums of recipe.yaml, run.json, plan.json and result.json, as they were written.

It is written before them with the old sums beside the new ones, and after them with the new ones alone, so that a kill
at any moment leaves files that it knows.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

from lrft.core.notes import say
from lrft.files.json import own_sum, parse_object, read_object
from lrft.files.read import RECORD, read_bytes
from lrft.files.records import PlanRecord, ResultRecord, RunManifest, RunRecord
from lrft.files.sums import (
    FORMAT,
    MANIFEST,
    Sum,
    content_difference,
    difference,
    file_sum,
    manifest_bytes,
    sum_of,
)
from lrft.files.write import remove_file
from lrft.registry.errors import DamagedFile, MissingFile
from lrft.registry.json import Json
from lrft.training import checkpoint_folder

RECIPE, RUN, PLAN, RESULT = "recipe.yaml", "run.json", "plan.json", "result.json"
KINDS = {RUN: RunRecord, PLAN: PlanRecord, RESULT: ResultRecord}
KEPT = {RUN: "run", PLAN: "plan"}  # of these the manifest of each checkpoint has a copy

Sums = dict[str, list[Sum]]
_told: set[str] = set()  # what was said of a file that is looked at more than once


class KnownFiles:
    """A run folder as far as its manifest goes."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @property
    def checkpoints(self) -> Path:
        """Where `step-N` folders are."""
        return self.path / "checkpoints"

    def write(
        self, name: str, content: str | Mapping[str, object], then: str = "", changed: bool = False
    ) -> bool:
        """Write a small file whole or not at all; whether it was written."""
        raise NotImplementedError

    def write_known(
        self,
        contents: Mapping[str, str | Mapping[str, object]],
        gone: Sequence[str] = (),
        growing: Sequence[str] = (),
        grown: Sequence[str] = (),
        then: str = "",
    ) -> None:
        """Write files whose sums the manifest keeps, in this order; those that say the same already are left alone.

        Args:
            gone: files that are removed before.
            growing: files that are written to from now on, of which no sum can be kept.
            grown: such files once nobody writes to them any more.
            then: what to do after the remedy of a failure.

        Raises:
            WriteError: the disk is full or not writable.
        """
        texts = {name: text_of(content) for name, content in contents.items()}
        before = {n: sums for n, sums in _known(self.path).items() if n not in (*gone, *growing, *grown)}
        before |= {name: [file_sum(self.path / name, self.path)] for name in grown if self.has(name)}
        self.write(MANIFEST, _manifest(before, texts, keep=True), then, changed=True)
        for name in gone:
            remove_file(self.path / name, then=then)
        for name, text in texts.items():
            self.write(name, text, then, changed=True)
        self.write(MANIFEST, _manifest(before, texts, keep=False), then, changed=True)

    def has(self, name: str) -> bool:
        """Whether there is a file, or anything else, of that name."""
        return os.path.lexists(self.path / name)

    def check_grown(self, name: str) -> None:
        """Compare a file that grew while the run went on, once that is finished; nothing is known of it before.

        Raises:
            MissingFile, DamagedFile: it is another by now.
        """
        path = self.path / name
        if not self.has(RESULT):
            return
        for entry in (read_sums(self.path) or {}).get(name, []):
            if problem := difference(path, entry, self.path):
                raise DamagedFile(path, problem, f"remove {MANIFEST} to have it believed as it is")

    def read_whole(self, name: str) -> Any:
        """A JSON file of the folder, as it was written.

        Raises:
            MissingFile, DamagedFile: it is none.
        """
        return parse_object(read_checked(self.path, name), self.path / name, KINDS.get(name))

    def read(self, name: str) -> Any:
        """A JSON file of the folder, as it was written; of one that is damaged, what the newest checkpoint kept of it.

        Raises:
            MissingFile, DamagedFile: it is none, and no checkpoint kept it.
        """
        try:
            return self.read_whole(name)
        except DamagedFile as error:
            kept = checkpoint_folder.kept(self.checkpoints, KEPT[name]) if name in KEPT else None
            if kept is None:
                raise
            tell_once(f"{error.file}: {error.problem}; what {kept[0]} kept of {name} is used")
            return kept[1]


def text_of(content: str | Mapping[str, object]) -> str:
    """What a small file of a run folder holds."""
    return content if isinstance(content, str) else json.dumps(content, indent=2, sort_keys=True) + "\n"


def read_sums(run: Path) -> Sums | None:
    """File -> the sums that it may have; None where there is no manifest, as an older lrft wrote none.

    Raises:
        DamagedFile: the manifest is damaged.
    """
    try:
        found = read_object(run / MANIFEST, RunManifest, within=run)
    except MissingFile:
        return None
    except DamagedFile as error:
        raise DamagedFile(run / MANIFEST, error.problem, _anew(run)) from None
    if found.get("sha256") != own_sum(found):
        raise DamagedFile(run / MANIFEST, "is damaged (its own sha256 is another)", _anew(run))
    return cast("Sums", found["files"])


def _anew(run: Path) -> str:
    return f"remove it, and lrft train {run} --resume writes it anew"


def read_checked(run: Path, name: str) -> bytes:
    """The content of a file of the run, once it is known to be what was written.

    Raises:
        MissingFile: there is none.
        DamagedFile: it is another than was written, or the manifest is damaged.
    """
    content = read_bytes(run / name, RECORD, run)
    sums = read_sums(run)
    if sums is None:
        return content
    if name not in sums:
        raise DamagedFile(run / name, f"is not among the files that {MANIFEST} knows", f"remove {run / name}")
    if all(content_difference(content, entry) for entry in sums[name]):
        raise DamagedFile(run / name, "is not what lrft wrote: it was edited, or is damaged")
    return content


def tell_once(line: str) -> None:
    """Say what is found again each time that a file is looked at."""
    if line not in _told:
        _told.add(line)
        say(line)


def _known(run: Path) -> Sums:
    """What the manifest says; nothing where it cannot be read, as it is about to be written anew."""
    try:
        return read_sums(run) or {}
    except DamagedFile:
        return {}


def _manifest(sums: Sums, texts: Mapping[str, str], keep: bool) -> str:
    """The text of a manifest; `keep` lets files that are about to be replaced have their old sums too."""
    files: Sums = dict(sums)
    for name, text in texts.items():
        new = sum_of(text.encode())
        files[name] = [*(entry for entry in sums.get(name, []) if keep and entry != new), new]
    return manifest_bytes({"format": FORMAT, "files": cast("dict[str, Json]", files)}).decode()
