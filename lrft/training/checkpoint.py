"""Checkpoints: folders of plain files, written whole or not at all, and verified before anything is believed.

`step-N/` holds adapter.safetensors, optimizer.safetensors, state.json and, written last, manifest.json with the size
and sha256 of the others. A folder without a manifest that verifies does not exist as far as resuming is concerned.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import Any, Literal

from safetensors.torch import save
from torch import Tensor

from lrft.core.callback import Callback
from lrft.core.run import Run
from lrft.registry.errors import CheckpointError
from lrft.registry.json import Json
from lrft.training.checkpoint_folder import fault, write_folder
from lrft.training.finite import check_saved
from lrft.training.fitting import Expected, misfit, unlike
from lrft.training.flatten import flatten, unflatten
from lrft.training.opened import ADAPTER, FORMAT, OPTIMIZER, STATE, OpenCheckpoint
from lrft.training.replayed import KEY as KEY_OF_RECORD
from lrft.training.replayed import replays, sum_of_tensors
from lrft.training.trained_on import KEY

PARTS: tuple[Literal["optimizer", "callbacks"], ...] = ("optimizer", "callbacks")  # that hold tensors


@dataclass(frozen=True)
class Identity:
    """What a checkpoint belongs to: the recipe's hash and the base model's fingerprint.

    Attributes:
        relied: what it relies on beside its own files, which its manifest keeps too (`lrft.files.records.Manifest`).
        trained_on: a sum of each part of what it was trained on (`TrainedOn.sums`).
        versions: under which it is made.
    """

    recipe: str
    base: str
    relied: Mapping[str, Json] = field(default_factory=dict)
    trained_on: Mapping[str, Json] = field(default_factory=dict)
    versions: Mapping[str, Json] = field(default_factory=dict)

    def record(self) -> dict[str, Json]:
        """What the manifest says of it."""
        known: dict[str, Json] = {KEY: self.trained_on} if self.trained_on else {}
        known |= {"versions": self.versions} if self.versions else {}
        return {"recipe": self.recipe, "base": self.base, **self.relied, **known}


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
        tensors: the adapter's tensors by name; their sum alone is kept where the optimizer's record gives them back.
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
    record = replays(run.optimizer)
    state = {
        "step": run.step,
        "total_steps": run.total_steps,
        "optimizer": optimizer_values,
        "schedule": run.schedule.state_dict(),
        "callbacks": callback_values,
        "parameters": _names(run),
        **({KEY_OF_RECORD: sum_of_tensors(tensors)} if record else {}),
        **extra,
    }
    files = {
        ADAPTER: _encode({} if record else tensors),
        OPTIMIZER: _encode(kept),
        STATE: json.dumps(state, indent=None if record else 1, sort_keys=True).encode(),
    }
    about = identity.record()
    if record:
        about.pop("plan", None)  # one entry a site; plan.json is compared by the run's own manifest
    write_folder(final, files, {"format": FORMAT, "step": run.step, **about})
    return final


def _names(run: Run) -> list[str]:
    """Of all parameters; their sum alone where a checkpoint is to be smaller than they are together."""
    names = [info.name for info in run.parameters]
    return [sha256("\n".join(names).encode()).hexdigest()] if replays(run.optimizer) else names


def read_adapter(folder: Path) -> dict[str, Tensor]:
    """The adapter tensors of a checkpoint.

    Raises:
        CheckpointError: the folder does not verify.
    """
    with OpenCheckpoint(folder) as saved:
        if problem := saved.fault():
            raise CheckpointError(f"{folder}: {problem}")
        return saved.tensors()


def check_identity(saved: OpenCheckpoint, identity: Identity) -> None:
    """Refuse a checkpoint of another base model.

    Raises:
        CheckpointError: names both fingerprints.
    """
    base = saved.manifest.get("base", "")
    if base != identity.base:
        raise CheckpointError(
            f"{saved.path}: was trained on another base model (fingerprint {base[:12]}, "
            f"this one has {identity.base[:12]}); give the model.name and revision of the run"
        )


def restore(run: Run, saved: OpenCheckpoint, expected: Expected) -> None:
    """Set optimizer, schedule, callbacks and step from a verified checkpoint.

    Args:
        expected: what the run's optimizer keeps, which sums that somebody made anew say nothing of.

    Raises:
        CheckpointError: the trainable parameters are not those of the checkpoint, or its state does not fit the run.
    """
    state = saved.state()
    if state["parameters"] != _names(run):
        raise CheckpointError(f"{saved.path}: its trainable parameters are not those of this recipe")
    tensors = saved.tensors(OPTIMIZER)
    try:
        if why := misfit(_of(tensors, "optimizer"), state["optimizer"], expected, begun_whole=True):
            raise ValueError(f"of the optimizer's state, {why}")
        if why := _odd_callbacks(run, _of(tensors, "callbacks"), state["callbacks"]):
            raise ValueError(f"of what goes with the run, {why}")
        _restore(run, state, tensors)
    except (KeyError, IndexError, TypeError, ValueError, AttributeError, RuntimeError) as error:
        raise CheckpointError(
            f"{saved.path / STATE}: does not fit this run ({type(error).__name__}: {error}); go on with the versions "
            "that wrote it, or train in another --out"
        ) from error


def _odd_callbacks(run: Run, tensors: Mapping[str, Tensor], values: Json) -> str:
    now = {name: callback.state_dict() for name, callback in _named(run.callbacks)}
    later = {name: callback.kept_later(run) for name, callback in _named(run.callbacks)}
    return unlike(tensors, values, Expected(*flatten(now))) or unlike(
        tensors, values, Expected(*flatten(later)), later=True
    )


def _restore(run: Run, state: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
    for prefix in PARTS:
        value = unflatten(_of(tensors, prefix), state[prefix])
        if prefix == "optimizer":
            run.optimizer.load_state_dict(value)
        else:
            for name, callback in _named(run.callbacks):
                if own := value.get(name):  # loggers may come and go between two sittings
                    callback.load_state_dict(own)
    run.schedule.load_state_dict(state["schedule"])
    run.step = state["step"]


def _of(tensors: Mapping[str, Tensor], part: str) -> dict[str, Tensor]:
    return {k.removeprefix(f"{part}."): v for k, v in tensors.items() if k.startswith(f"{part}.")}


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
