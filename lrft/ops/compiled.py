"""Functions of tensors that torch.compile makes one loop of, where that pays and where there is a C++ compiler."""

from __future__ import annotations

import functools
import os
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Generic, ParamSpec, TypeVar

import torch

P = ParamSpec("P")
R = TypeVar("R")

FAILURES: list[str] = []
"""Why compiling failed in this process, the first line of each; everything runs eagerly from then on."""

_on = False


@contextmanager
def compiling(wanted: bool = True) -> Iterator[None]:
    """Let the functions marked `fusible` be compiled inside, if they can be. It changes roundings, nothing else."""
    global _on
    before, _on = _on, wanted and not FAILURES
    try:
        yield
    finally:
        _on = before


class Fusible(Generic[P, R]):
    """A function that is called as it is, or compiled while `compiling`.

    The function is pure but for tensors that it made itself, so that both give the same up to rounding.
    """

    def __init__(self, function: Callable[P, R]) -> None:
        functools.update_wrapper(self, function)
        self.function = function
        self._compiled: Callable[P, R] | None = None

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R:
        """The function's value."""
        if not _on or FAILURES:
            return self.function(*args, **kwargs)
        if self._compiled is None:
            self._compiled = torch.compile(self.function, dynamic=True, fullgraph=True)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of torch's own making, about its own code
                return self._compiled(*args, **kwargs)
        except Exception as error:  # no C++ compiler, no disk, or whatever else a compiler meets
            FAILURES.append((str(error).strip().splitlines() or [type(error).__name__])[0][:160])
            return self.function(*args, **kwargs)


def fusible(function: Callable[P, R]) -> Fusible[P, R]:
    """Mark a function of tensors as one that may be compiled."""
    return Fusible(function)


def can_compile(cache: Path) -> str:
    """Why nothing can be compiled here, or nothing.

    Args:
        cache: the folder that keeps what was compiled, where the user has set none for torch.
    """
    os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(cache))
    probe: Fusible[[torch.Tensor], torch.Tensor] = Fusible(lambda x: x.exp() + 1)
    with compiling():
        probe(torch.ones(4))
    return FAILURES[0] if FAILURES else ""
