"""Checkpoints that hold what every step did in the place of what trains: done again from the start of the run."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping

import torch
from torch import Tensor

from lrft.core.optimizer import contract_of
from lrft.core.run import Run
from lrft.registry.errors import CheckpointError, RecipeError
from lrft.training.flatten import unflatten
from lrft.training.opened import OPTIMIZER, OpenCheckpoint

KEY = "replayed"  # in state.json: the sum of what trains after the last step


def replays(optimizer: torch.optim.Optimizer) -> bool:
    """Whether its checkpoints leave out what trains."""
    return contract_of(optimizer).replays


def is_record(saved: OpenCheckpoint) -> bool:
    """Whether a checkpoint holds the steps and not what they trained."""
    return KEY in saved.state()


def check_replayed(run: Run, kept: Iterable[str]) -> None:
    """Refuse a run of which something changes that its optimizer does not move.

    Args:
        kept: names of all that a checkpoint would keep of the model.

    Raises:
        RecipeError: names the first.
    """
    if not replays(run.optimizer):
        return
    named = {name for info in run.parameters for name in (info.name, f"base.{info.name}")}
    more = sorted(set(kept) - named)
    if more or run.settling:
        what = more[0] if more else "what settles after every step"
        raise RecipeError(
            f"record: {what} is not moved by the optimizer, so its steps would not give it back; write whole",
            "optimizer.checkpoint",
        )


def sum_of_tensors(tensors: Mapping[str, Tensor]) -> str:
    """sha256 (hex) of names, shapes, types and bytes."""
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}\n".encode())
        digest.update(tensor.detach().to("cpu").contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def replay(optimizer: torch.optim.Optimizer, saved: OpenCheckpoint, trained: Mapping[str, Tensor]) -> None:
    """Do the steps of a checkpoint again, on parameters as they were before the first one.

    Args:
        trained: the tensors of the model that the optimizer moves, as a checkpoint would name them.

    Raises:
        CheckpointError: they are not what the run had then.
    """
    state = saved.state()
    tensors = saved.tensors(OPTIMIZER)
    prefix = "optimizer."
    own = {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}
    contract = contract_of(optimizer)
    assert not isinstance(contract, type), "an optimizer that replays is one of ours"
    contract.replay(unflatten(own, state["optimizer"])["record"])
    if sum_of_tensors(trained) != state[KEY]:
        raise CheckpointError(
            f"{saved.path}: its {state['step']} steps, done again, give other weights than it had: the base, its start "
            "or the versions differ; put back what was there, or use adapter/, which holds them as they were"
        )
