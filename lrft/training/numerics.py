"""How a training computes: with operations that give the same bits every time, and with what precision of products."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from lrft.registry.errors import RecipeError

WORKSPACE = "CUBLAS_WORKSPACE_CONFIG"
WORKSPACES = (":4096:8", ":16:8")  # those with which cuBLAS adds in one order
# What is asked of libraries that look at no setting of torch's: flash-attn's backward pass, through transformers.
ASKED = {"FLASH_ATTENTION_DETERMINISTIC": "1"}
LACKS = " does not have a deterministic implementation"


@contextmanager
def numerics(deterministic: bool, tf32: bool) -> Iterator[None]:
    """Compute so inside, and as before afterwards. To be entered before a GPU is first used.

    Args:
        deterministic: only operations that give the same bits every time; others are refused when they are met.
        tf32: float32 products on a GPU round their factors to 10 bits of mantissa.

    Raises:
        RecipeError: an operation has no deterministic form on this device, or the environment forbids that of cuBLAS.
    """
    before = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = (
        tf32  # this alone: the setting that torch advises rounds on CPUs too
    )
    try:
        if deterministic:
            with _deterministic():
                yield
        else:
            yield
    finally:
        torch.backends.cuda.matmul.allow_tf32 = before


@contextmanager
def _deterministic() -> Iterator[None]:
    given = os.environ.get(WORKSPACE)
    if given is not None and given not in WORKSPACES:
        raise RecipeError(
            f"{WORKSPACE} is {given!r}, with which a GPU's products differ from run to run; set it to "
            f"{' or '.join(WORKSPACES)}, or remove it",
            "train.deterministic",
        )
    if torch.cuda.is_initialized() and given is None:
        raise RecipeError(
            f"this process has used the GPU already; set {WORKSPACE}={WORKSPACES[0]} before it starts",
            "train.deterministic",
        )
    with _environment({**ASKED, WORKSPACE: given or WORKSPACES[0]}), _strict():
        try:
            yield
        except RuntimeError as error:
            operation, found, _ = str(error).partition(LACKS)
            if not found:
                raise
            raise RecipeError(
                f"{operation} has no form here that gives the same bits every time; write false, or choose parts that "
                "do without it",
                "train.deterministic",
            ) from error


@contextmanager
def _strict() -> Iterator[None]:
    """Let torch refuse operations that may give other bits."""
    memory: Any = torch.utils.deterministic  # a property of the module that its annotations leave out
    was, fills = (
        torch.are_deterministic_algorithms_enabled(),
        memory.fill_uninitialized_memory,
    )
    warns = torch.is_deterministic_algorithms_warn_only_enabled()
    torch.use_deterministic_algorithms(True)
    memory.fill_uninitialized_memory = False  # nothing here reads what it has not written
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(was, warn_only=warns)
        memory.fill_uninitialized_memory = fills


@contextmanager
def _environment(wanted: dict[str, str]) -> Iterator[None]:
    outside = {name: os.environ.get(name) for name in wanted}
    os.environ.update(wanted)
    try:
        yield
    finally:
        for name, value in outside.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
