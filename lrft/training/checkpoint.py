"""Checkpoints: folders of plain files, written whole or not at all, and verified before anything is believed.

`step-N/` holds adapter.safetensors, optimizer.safetensors, state.json and, written last, manifest.json with the size
and sha256 of the others. A folder without a manifest that verifies does not exist as far as resuming is concerned.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NotRequired, TypedDict

from safetensors.torch import load, save
from torch import Tensor
from torch.optim.optimizer import StateDict

from lrft.core.callback import Callback
from lrft.core.run import Run
from lrft.registry.errors import CheckpointError
from lrft.registry.json import Json
from lrft.training.checkpoint_folder import FORMAT, MANIFEST, fault, write_folder
from lrft.training.finite import check_saved
from lrft.training.flatten import flatten, unflatten

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
    run: Run,
    tensors: dict[str, Tensor],
    folder: Path,
    identity: Identity,
    extra: Mapping[str, Json],
    anew: bool = False,
    finite: int = 0,
) -> Path:
    """Write `folder/step-N` from the run's state; a killed or failed write leaves older checkpoints intact.

    Args:
        tensors: the adapter's tensors by name.
        extra: plain values kept in state.json (the best score so far).
        anew: replace one of this step that is whole, which is left alone otherwise.
        finite: the step after which all numbers were last seen to be finite.

    Raises:
        LrftError: the disk is full or not writable; says how many bytes were needed.
        NumericalError: a tensor holds what is no finite number; nothing is written.
    """
    final = folder / f"step-{run.step}"
    if not anew and final.exists() and not fault(final):
        return final  # the same step of the same run: resuming is bit-identical, so is the checkpoint
    optimizer_tensors, optimizer_values = flatten(run.optimizer.state_dict())
    callback_tensors, callback_values = flatten({name: c.state_dict() for name, c in _named(run.callbacks)})
    kept = {
        **{f"optimizer.{k}": v for k, v in optimizer_tensors.items()},
        **{f"callbacks.{k}": v for k, v in callback_tensors.items()},
    }
    check_saved(run, tensors, kept, finite)
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
        "optimizer.safetensors": _encode(kept),
        "state.json": json.dumps(state, indent=1, sort_keys=True).encode(),
    }
    write_folder(
        final, files, {"format": FORMAT, "step": run.step, "recipe": identity.recipe, "base": identity.base}
    )
    return final


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
            for name, callback in _named(run.callbacks):
                if own := value.get(name):  # loggers may come and go between two sittings
                    callback.load_state_dict(own)
    run.schedule.load_state_dict(state["schedule"])
    run.step = state["step"]
    return state


def _named(callbacks: Sequence[Callback]) -> Iterator[tuple[str, Callback]]:
    """Each with the name of its class; a second one of a class is `Class#2`."""
    seen: Counter[str] = Counter()
    for callback in callbacks:
        name = type(callback).__name__
        seen[name] += 1
        yield name if seen[name] == 1 else f"{name}#{seen[name]}", callback


def _encode(tensors: dict[str, Tensor]) -> bytes:
    return save(
        {name: tensor.detach().to("cpu").contiguous().clone() for name, tensor in sorted(tensors.items())}
    )
