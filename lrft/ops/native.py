"""The kernels of `lrft/ops/kernels` for CPUs, used inside `using` where they apply. `lrft.build.native` builds them."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor

SOURCES = Path(__file__).with_name("kernels")

_active: Kernels | None = None


@contextmanager
def using(kernels: Kernels | None) -> Iterator[None]:
    """Let nodes take these kernels inside, where they apply. It changes roundings, nothing else."""
    global _active
    before, _active = _active, kernels
    try:
        yield
    finally:
        _active = before


class Kernels:
    """The functions of libraries that were built, called by name.

    Args:
        libraries: paths of what was built.

    Attributes:
        device: kind of the tensors that they take.
        missed: what went without them since somebody emptied it, and why.
    """

    device = "cpu"

    def __init__(self, libraries: Sequence[Path]) -> None:
        self._libraries = [ctypes.CDLL(str(path)) for path in libraries]
        self._functions: dict[str, ctypes._NamedFuncPointer] = {}
        self._rooms: dict[str, Tensor] = {}
        self.missed: dict[str, str] = {}

    def __call__(self, name: str, *given: Tensor | int | float | None) -> None:
        """Call `lrft_` + name: tensors as where their numbers begin, integers in 64 bits, numbers as float32.

        Nothing is checked. A tensor's numbers lie together, or as the function is told.
        """
        function = self._functions.get(name)
        if function is None:
            found = next(one for one in self._libraries if hasattr(one, f"lrft_{name}"))
            function = self._functions[name] = getattr(found, f"lrft_{name}")
            function.restype = None
        function(*map(_as_c, given), torch.get_num_threads())

    def went_without(self, what: str, why: str) -> None:
        """Note that something of a step goes without them."""
        self.missed.setdefault(what, why)

    def room(self, name: str, size: int) -> Tensor:
        """At least `size` float32 numbers that whoever comes next by this name writes over."""
        room = self._rooms.get(name)
        if room is None or room.numel() < size:
            with torch.inference_mode(False):
                room = self._rooms[name] = torch.empty(size)
        return room


class Shapes(Kernels):
    """What takes the kernels' place for tensors without storage: results have their shapes, and nothing is computed."""

    device = "meta"

    def __init__(self) -> None:
        super().__init__(())

    def __call__(self, name: str, *given: Tensor | int | float | None) -> None:
        """Nothing."""

    def room(self, name: str, size: int) -> Tensor:
        """Such a room, new every time."""
        return torch.empty(size, device="meta")


def kernels_on(device: torch.device) -> Kernels | None:
    """The kernels where they apply: on a CPU, where nothing asks for a graph of the parts of what is computed."""
    if _active is None or torch.is_grad_enabled() or torch.compiler.is_compiling():
        return None
    return _active if device.type == _active.device else None


def kernels_for(*tensors: Tensor) -> Kernels | None:
    """The same for tensors, which are of one precision."""
    kernels, first = kernels_on(tensors[0].device), tensors[0].dtype
    if kernels is None or first not in (torch.float32, torch.bfloat16):
        return None
    return kernels if all(one.dtype == first and one.device == tensors[0].device for one in tensors) else None


def halves(x: Tensor) -> int:
    """What the kernels are told of a tensor's precision."""
    return int(x.dtype == torch.bfloat16)


def in_rows(x: Tensor) -> Tensor:
    """X with the numbers of its last axis side by side, a copy where they are not, or where some stand for several.

    What is made like it has its strides.
    """
    expected, dense = 1, x.stride(-1) == 1
    for stride, size in sorted(
        (stride, size) for stride, size in zip(x.stride(), x.shape, strict=True) if size > 1
    ):
        dense = dense and stride == expected
        expected *= size
    return x if dense else x.contiguous()


def _as_c(one: Tensor | int | float | None) -> ctypes.c_void_p | ctypes.c_int64 | ctypes.c_float | None:
    if one is None or isinstance(one, Tensor):
        return ctypes.c_void_p(None if one is None else one.data_ptr())
    return ctypes.c_float(one) if isinstance(one, float) else ctypes.c_int64(one)
