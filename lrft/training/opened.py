"""A checkpoint with its files open: nobody can take them away, and each is compared before it is believed."""

from __future__ import annotations

import hashlib
import os
import re
from contextlib import ExitStack
from io import BufferedReader
from pathlib import Path
from types import TracebackType
from typing import Any, cast

from safetensors import SafetensorError
from safetensors.torch import load
from torch import Tensor

from lrft.files.json import SUM, own_sum, parse_object
from lrft.files.read import RECORD, content_of, leads_out, open_regular
from lrft.files.records import Manifest, State
from lrft.files.sums import MANIFEST, Sum, content_difference, open_difference
from lrft.registry.errors import DamagedFile
from lrft.training.finite import fault_of

FORMAT = 2
READABLE = (1, FORMAT)
ADAPTER, OPTIMIZER, STATE = "adapter.safetensors", "optimizer.safetensors", "state.json"
STEP = re.compile(
    r"step-(0|[1-9][0-9]{0,17})", re.ASCII
)  # and no other digits, of which Unicode has hundreds


class OpenCheckpoint:
    """The files of a `step-N` folder, all opened before the first is read.

    Attributes:
        path: the folder; it may be gone by now, as a training beside prunes.
        manifest: what manifest.json holds.
        manifest_sha256: of that file.

    Raises:
        DamagedFile: manifest.json or a file that it names cannot be opened, or is none.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        if leads_out(path, path.parent):
            raise DamagedFile(
                path, "is a link out of its folder, which is not followed", "put the folder itself there"
            )
        with ExitStack() as stack:
            file = stack.enter_context(open_regular(path / MANIFEST, RECORD, path))
            content = content_of(file, path / MANIFEST, RECORD)
            self.manifest = _read_manifest(content, path / MANIFEST)
            self.manifest_sha256 = hashlib.sha256(content).hexdigest()
            self._files: dict[str, BufferedReader] = {
                name: stack.enter_context(open_regular(path / name, within=path))
                for name in self.manifest["files"]
            }
            self._stack = stack.pop_all()

    @property
    def step(self) -> int:
        """N of `step-N`."""
        return int(self.path.name.removeprefix("step-"))

    def fault(self) -> str:
        """What is wrong with a file, or an empty string; sizes are compared before anything is hashed."""
        entries = self._entries()
        fits = {name: self._files[name].seek(0, os.SEEK_END) == entries[name]["bytes"] for name in entries}
        for name in sorted(entries, key=fits.__getitem__):
            try:
                if why := open_difference(self._files[name], self.path / name, entries[name]):
                    return f"{name} {why}"
                if name.endswith(".safetensors") and (why := fault_of(self.content(name))):
                    return f"{name} {why}"
            except DamagedFile as error:
                return f"{name} {error.problem}"
        return ""

    def content(self, name: str) -> bytes:
        """A file's content, compared with the manifest after it was read.

        Raises:
            DamagedFile: it is another.
        """
        entry = self._entries()[name]
        content = content_of(self._files[name], self.path / name, entry["bytes"])
        if why := content_difference(content, entry):
            raise DamagedFile(self.path / name, why)
        return content

    def tensors(self, name: str = ADAPTER) -> dict[str, Tensor]:
        """The tensors of a file.

        Raises:
            DamagedFile: it is another than was written.
        """
        try:
            return load(self.content(name))
        except SafetensorError as error:
            raise DamagedFile(self.path / name, f"holds no tensors ({error})") from None

    def state(self) -> dict[str, Any]:
        """What state.json holds.

        Raises:
            DamagedFile: it is another than was written, or no such record.
        """
        return parse_object(self.content(STATE), self.path / STATE, State)

    def close(self) -> None:
        """Let the files go."""
        self._stack.close()

    def __enter__(self) -> OpenCheckpoint:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _entries(self) -> dict[str, Sum]:
        return cast("dict[str, Sum]", self.manifest["files"])


def _read_manifest(content: bytes, path: Path) -> dict[str, Any]:
    """A manifest that fits the folder that it is in.

    Raises:
        DamagedFile: it is damaged, of another version, or of another folder.
    """
    found = parse_object(content, path)
    if found.get("format") not in READABLE:
        known = " and ".join(map(str, READABLE))
        raise DamagedFile(
            path, f"is damaged, or of another version (format {found.get('format')!r}, not {known})"
        )
    if (SUM in found or found["format"] == FORMAT) and found.get(SUM) != own_sum(found):
        raise DamagedFile(path, "is damaged (its own sha256 is another)")
    parse_object(content, path, Manifest)
    for name in found["files"]:
        if name in ("", ".", "..") or Path(name).name != name or name == MANIFEST:
            raise DamagedFile(path, f"names {name!r}, which is no file of a checkpoint")
    missing = [name for name in (ADAPTER, OPTIMIZER, STATE) if name not in found["files"]]
    if missing:
        raise DamagedFile(path, f"does not name {missing[0]}")
    said = STEP.fullmatch(path.parent.name)
    if said is not None and found.get("step") not in (None, int(said[1])):
        raise DamagedFile(path, f"is of step {found['step']}, so {path.parent.name} was renamed")
    return found
