"""Checkpoints: folders of plain files, written whole or not at all, and verified before anything is believed.

`step-N/` holds adapter.safetensors, optimizer.safetensors, state.json and, written last, manifest.json with the size
and sha256 of the others. A folder without a manifest that verifies does not exist as far as resuming is concerned.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NotRequired, TypedDict

from safetensors.torch import load, save
from torch import Tensor
from torch.optim.optimizer import StateDict

from lrft.core.run import Run
from lrft.registry.errors import CheckpointError, LrftError
from lrft.registry.json import Json
from lrft.training.flatten import flatten, unflatten

FORMAT = 1
MANIFEST = "manifest.json"


PARTS: tuple[Literal["optimizer", "callbacks"], ...] = ("optimizer", "callbacks")  # that hold tensors


class SavedState(TypedDict):
    """What state.json holds."""

    step: int
    total_steps: int
    optimizer: Json
    schedule: StateDict
    callbacks: Json
    parameters: list[str]
    best: NotRequired[str | None]


@dataclass(frozen=True)
class Identity:
    """What a checkpoint belongs to: the recipe's hash and the base model's fingerprint."""

    recipe: str
    base: str


def save_checkpoint(
    run: Run, tensors: dict[str, Tensor], folder: Path, identity: Identity, extra: Mapping[str, Json]
) -> Path:
    """Write `folder/step-N` from the run's state; a killed or failed write leaves older checkpoints intact.

    Args:
        tensors: the adapter's tensors by name.
        extra: plain values kept in state.json (the best score so far).

    Raises:
        LrftError: the disk is full or not writable; says how many bytes were needed.
    """
    final = folder / f"step-{run.step}"
    if final.exists() and not fault(final):
        return final  # the same step of the same run: resuming is bit-identical, so is the checkpoint
    optimizer_tensors, optimizer_values = flatten(run.optimizer.state_dict())
    callback_tensors, callback_values = flatten({type(c).__name__: c.state_dict() for c in run.callbacks})
    state = {
        "step": run.step,
        "total_steps": run.total_steps,
        "optimizer": optimizer_values,
        "schedule": run.schedule.state_dict(),
        "callbacks": callback_values,
        "parameters": [info.name for info in run.parameters],
        **extra,
    }
    files = {
        "adapter.safetensors": _encode(tensors),
        "optimizer.safetensors": _encode(
            {
                **{f"optimizer.{k}": v for k, v in optimizer_tensors.items()},
                **{f"callbacks.{k}": v for k, v in callback_tensors.items()},
            }
        ),
        "state.json": json.dumps(state, indent=1, sort_keys=True).encode(),
    }
    write_folder(
        final, files, {"format": FORMAT, "step": run.step, "recipe": identity.recipe, "base": identity.base}
    )
    return final


def write_folder(final: Path, files: dict[str, bytes], manifest: Mapping[str, Json]) -> None:
    """Write files beside, sync, manifest last, rename; a damaged folder at `final` is kept aside.

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
        _sync_folder(scratch)
        if final.exists():  # it does not verify, or it would not be written again
            final.rename(final.with_name(f"{final.name}.damaged-{time.time_ns()}"))
        scratch.rename(final)
        _sync_folder(final.parent)
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


def read_adapter(folder: Path) -> dict[str, Tensor]:
    """The adapter tensors of a checkpoint.

    Raises:
        CheckpointError: the folder does not verify.
    """
    if problem := fault(folder):
        raise CheckpointError(f"{folder}: {problem}")
    return load((folder / "adapter.safetensors").read_bytes())


def check_identity(folder: Path, identity: Identity) -> None:
    """Refuse a checkpoint of another base model.

    Raises:
        CheckpointError: names both fingerprints.
    """
    manifest = json.loads((folder / MANIFEST).read_bytes())
    if manifest["base"] != identity.base:
        raise CheckpointError(
            f"{folder}: was trained on another base model (fingerprint {manifest['base'][:12]}, "
            f"this one has {identity.base[:12]}); give the model.name and revision of the run"
        )


def restore(run: Run, folder: Path) -> SavedState:
    """Set optimizer, schedule, callbacks and step from a verified checkpoint; returns state.json.

    Raises:
        CheckpointError: the trainable parameters are not those of the checkpoint.
    """
    state: SavedState = json.loads((folder / "state.json").read_bytes())
    names = [info.name for info in run.parameters]
    if state["parameters"] != names:
        raise CheckpointError(f"{folder}: its trainable parameters are not those of this recipe")
    tensors = load((folder / "optimizer.safetensors").read_bytes())
    for prefix in PARTS:
        part = {k.removeprefix(f"{prefix}."): v for k, v in tensors.items() if k.startswith(f"{prefix}.")}
        value = unflatten(part, state[prefix])
        if prefix == "optimizer":
            run.optimizer.load_state_dict(value)
        else:
            for callback in run.callbacks:
                if own := value.get(type(callback).__name__):  # loggers may come and go between two sittings
                    callback.load_state_dict(own)
    run.schedule.load_state_dict(state["schedule"])
    run.step = state["step"]
    return state


def prune(folder: Path, keep_last: int, best: str | None) -> None:
    """Delete old checkpoints, once the newest verifies: all but the `keep_last` newest and the best one."""
    present = sorted(steps_in(folder), key=step_of)
    if not present or fault(present[-1]):
        return
    for old in present[:-keep_last]:
        if old.name != best:
            shutil.rmtree(old, ignore_errors=True)


def _encode(tensors: dict[str, Tensor]) -> bytes:
    return save(
        {name: tensor.detach().to("cpu").contiguous().clone() for name, tensor in sorted(tensors.items())}
    )


def _write_synced(path: Path, content: bytes) -> None:
    with path.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def _sync_folder(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
