"""A checkpoint as a folder of plain files, written whole or not at all, and verified before anything is believed."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Mapping
from pathlib import Path

from lrft.files.failure import tell_failures
from lrft.files.fresh_folder import fresh_folder, move_folder, remove_folder
from lrft.files.scratch import sweep
from lrft.registry.json import Json

FORMAT = 1

MANIFEST = "manifest.json"
THEN = ", then add --resume; earlier checkpoints are intact"


def write_folder(final: Path, files: dict[str, bytes], manifest: Mapping[str, Json]) -> None:
    """Write files beside, sync, manifest last, rename; a damaged folder at `final` is kept aside, a whole one replaced.

    Raises:
        WriteError: not enough room, or not writable.
    """
    sums = {
        name: {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
        for name, content in files.items()
    }
    about = json.dumps({**manifest, "files": sums}, indent=1).encode()
    needed = sum(map(len, files.values())) + len(about)
    sweep(final.parent)
    with fresh_folder(final, "replace", needed=needed, then=THEN) as fresh:
        for name, content in files.items():
            fresh.write(name, content)
        fresh.write(MANIFEST, about)
        if final.exists() and fault(final):
            with tell_failures(final, then=THEN):
                move_folder(final, final.with_name(f"{final.name}.damaged-{time.time_ns()}"))


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
            remove_folder(old)
