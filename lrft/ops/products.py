"""Matrix products in the precision that the processor multiplies fastest, their results in that of what goes in.

Half-precision numbers are numbers of float32 too, and products of either kind are summed in float32: only the order of
the sums differs. Intel's processors without AMX, or whose virtual machine hides it, take bfloat16 at half the rate of
float32, and ones without a dot product of bfloat16 at a small part of it.
"""

from __future__ import annotations

import math
import platform
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

FEW = 32  # rows; a product of fewer takes less time than widening its matrix
HALF = (torch.bfloat16, torch.float16)


def slow_halves(cpuinfo: str) -> tuple[torch.dtype, ...]:
    """Which half precisions an x86 processor multiplies more slowly than float32.

    Args:
        cpuinfo: what Linux tells of it.
    """
    found: dict[str, str] = {}
    for line in cpuinfo.splitlines():
        name, _, value = line.partition(":")
        found.setdefault(name.strip(), value.strip())
    flags, amd = set(found.get("flags", "").split()), found.get("vendor_id") == "AuthenticAMD"
    fast = {
        torch.bfloat16: "amx_bf16" in flags or ("avx512_bf16" in flags and amd),
        torch.float16: bool({"amx_fp16", "avx512_fp16"} & flags),
    }
    return tuple(dtype for dtype in HALF if not fast[dtype])


def _slow_here() -> tuple[torch.dtype, ...]:
    if platform.machine() not in ("x86_64", "AMD64"):
        return ()
    try:
        return slow_halves(Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace"))
    except OSError:  # another system than Linux
        return ()


_rooms = threading.local()  # of each thread its own, by name

# Read once and by its name, not behind a cache: a traced function sees a constant.
_slow = _slow_here()


@contextmanager
def multiplying(slow: tuple[torch.dtype, ...]) -> Iterator[None]:
    """As on a processor that multiplies these precisions slowly, and no other."""
    global _slow
    before, _slow = _slow, slow
    try:
        yield
    finally:
        _slow = before


def working(x: Tensor) -> torch.dtype:
    """The precision in which the rows of x (..., n) are multiplied with a matrix."""
    if x.dtype not in _slow or x.device.type != "cpu" or x.shape[-1] == 0:
        return x.dtype
    return torch.float32 if x.numel() >= FEW * x.shape[-1] else x.dtype


def widens(dtype: torch.dtype) -> bool:
    """Whether many rows of this precision are multiplied in float32 on this machine's CPU."""
    return dtype == torch.float32 or dtype in _slow


def widen(x: Tensor, work: torch.dtype, room: str) -> Tensor:
    """X in the working precision; a copy is written to the room of that name, over what was there before.

    Rooms are made once and grow: tensors of this size that come and go between others that stay would leave holes, and
    their pages take longer to come by than the numbers in them. Nothing in a room outlives the node that asked for it.
    """
    if x.dtype == work or torch.compiler.is_compiling():
        return x.to(work)
    return room_of(room, x.shape).copy_(x)


def multiplied(x: Tensor, matrix: Tensor, half: torch.dtype, room: str, bias: Tensor | None = None) -> Tensor:
    """X (rows, n) times matrix (n, m) plus bias (m,), in the room of that name where `half` is not their precision."""
    if x.dtype == half or torch.compiler.is_compiling():
        return x @ matrix if bias is None else torch.addmm(bias.to(x.dtype), x, matrix)
    y = torch.mm(x, matrix, out=room_of(room, (x.shape[0], matrix.shape[1])))
    return y if bias is None else y.add_(bias)


def times(x: Tensor, columns: Tensor, half: torch.dtype, room: str) -> Tensor:
    """X (rows, n) times columns (n,) of its precision, in the room of that name where `half` is not that."""
    if x.dtype == half or torch.compiler.is_compiling():
        return x * columns
    return torch.mul(x, columns, out=room_of(room, x.shape))


def room_of(name: str, shape: Sequence[int]) -> Tensor:
    """The room of that name, float32 numbers that somebody left there."""
    held, size = _rooms.__dict__, math.prod(shape)
    room: Tensor | None = held.get(name)
    if room is None or room.numel() < size:
        held.pop(name, None)
        with torch.inference_mode(False):
            room = held[name] = torch.empty(size)
    return room[:size].view(*shape)


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """X W^T + b for x (..., in) and weight (out, in), (..., out) in the dtype of x."""
    work = working(x)
    if work == x.dtype:
        return F.linear(x, weight, bias)
    return F.linear(x.to(work), weight.to(work), None if bias is None else bias.to(work)).to(x.dtype)


def matmul(x: Tensor, matrix: Tensor) -> Tensor:
    """X (..., n) times matrix (n, m), (..., m) in the dtype of x."""
    work = working(x)
    return x @ matrix if work == x.dtype else (x.to(work) @ matrix.to(work)).to(x.dtype)


def added(y: Tensor, x: Tensor, matrix: Tensor) -> Tensor:
    """Y + x times matrix (n, m), for y (rows, m) and x (rows, n), in the dtype of x."""
    work = working(x)
    if work == x.dtype:
        return torch.addmm(y, x, matrix)
    return y.to(work).addmm_(x.to(work), matrix.to(work)).to(x.dtype)


def outer(dy: Tensor, x: Tensor) -> Tensor:
    """Dy^T x, the sum over the rows, (out, in) for dy (rows, out) and x (rows, in), in the working precision."""
    work = working(x)
    return dy.to(work).mT @ x.to(work)
