"""A checkpoint as a folder of plain files, written whole or not at all, and verified before anything is believed."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
import time
from collections.abc import Callable, Mapping
from pathlib import Path

from lrft.core.swap import replace_folder, sync
from lrft.registry.errors import LrftError
from lrft.registry.json import Json
from lrft.training.finite import fault_of

FORMAT = 1

MANIFEST = "manifest.json"


def write_folder(final: Path, files: dict[str, bytes], manifest: Mapping[str, Json]) -> None:
    """Write files beside, sync, manifest last, rename; a damaged folder at `final` is kept aside, a whole one replaced.

    Raises:
        LrftError: not enough room, or not writable.
    """
    needed = sum(len(content) for content in files.values())
    scratch = final.with_name(f"{final.name}.tmp")
    try:
        final.parent.mkdir(parents=True, exist_ok=True)
        if (free := shutil.disk_usage(final.parent).free) < needed:
            raise OSError(errno.ENOSPC, f"{free} bytes free")
        shutil.rmtree(scratch, ignore_errors=True)
        scratch.mkdir()
        entries = {}
        for name, content in files.items():
            _write_synced(scratch / name, content)
            entries[name] = {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
        _write_synced(scratch / MANIFEST, json.dumps({**manifest, "files": entries}, indent=1).encode())
        sync(scratch)
        if final.exists() and not fault(final):
            replace_folder(scratch, final)
            return
        if final.exists():
            final.rename(final.with_name(f"{final.name}.damaged-{time.time_ns()}"))
        scratch.rename(final)
        sync(final.parent)
    except OSError as error:
        shutil.rmtree(scratch, ignore_errors=True)
        raise LrftError(
            f"{final}: could not be written ({error.strerror or error}); it needs {needed} bytes. "
            "Earlier checkpoints are intact; free some space and add --resume."
        ) from error


def fault(folder: Path) -> str:
    """What is wrong with a checkpoint folder, or an empty string when its manifest verifies."""
    try:
        manifest = json.loads((folder / MANIFEST).read_bytes())
        files = manifest["files"]
    except FileNotFoundError:
        return f"{MANIFEST} is missing"
    except (OSError, ValueError, KeyError, TypeError) as error:
        return f"{MANIFEST} cannot be read ({error})"
    if manifest.get("format") != FORMAT:
        return f"its format is {manifest.get('format')}, this version reads {FORMAT}"
    for name, entry in files.items():
        try:
            content = (folder / name).read_bytes()
        except OSError as error:
            return f"{name} cannot be read ({error.strerror})"
        if not isinstance(entry, dict) or hashlib.sha256(content).hexdigest() != entry.get("sha256"):
            return f"{name} is damaged (its sha256 is not the manifest's)"
        if name.endswith(".safetensors") and (problem := fault_of(content)):
            return f"{name} {problem}"
    return ""


def newest(folder: Path, say: Callable[[str], None] = print) -> Path | None:
    """The newest checkpoint that verifies. Damaged ones are named, kept and skipped."""
    for candidate in sorted(steps_in(folder), key=step_of, reverse=True):
        problem = fault(candidate)
        if not problem:
            return candidate
        say(f"{candidate.name}: {problem}; trying the one before")
    return None


def steps_in(folder: Path) -> list[Path]:
    """The checkpoint folders of a run, whole or not, in no order."""
    if not folder.is_dir():
        return []
    return [path for path in folder.glob("step-*") if path.is_dir() and path.name[5:].isdigit()]


def step_of(folder: Path) -> int:
    """N of `step-N`."""
    return int(folder.name.removeprefix("step-"))


def prune(folder: Path, keep_last: int, best: str | None) -> None:
    """Delete old checkpoints, once the newest verifies: all but the `keep_last` newest and the best one."""
    present = sorted(steps_in(folder), key=step_of)
    if not present or fault(present[-1]):
        return
    for old in present[:-keep_last]:
        if old.name != best:
            shutil.rmtree(old, ignore_errors=True)


def _write_synced(path: Path, content: bytes) -> None:
    with path.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
