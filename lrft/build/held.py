"""Bytes of tensors that are alive while something runs, counted at every call that reaches a kernel."""

from __future__ import annotations

import weakref
from collections.abc import Iterator
from types import TracebackType
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

# Calls on each entry by itself whose result has the type that torch promotes their first two arguments to.
SAME_TYPE = frozenset(
    "add sub rsub mul div floor_divide pow rsqrt sqrt neg tanh exp log silu clamp_min".split()
)
# Calls on each entry of two whose result is true or false.
COMPARISONS = {"ge", "le", "gt", "lt", "eq", "ne", "logical_and", "bitwise_and"}
# Calls on a dimension, or several, that are taken together.
OVER_DIMENSIONS = {"amax", "sum", "mean"}
PRODUCTS = {"mm", "addmm", "bmm", "baddbmm"}
# Calls whose result is like their first argument.
LIKE_FIRST = frozenset(
    "_softmax_backward_data masked_fill silu_backward gelu_backward tanh_backward gelu _log_softmax index_add "
    "_softmax sigmoid sigmoid_backward clamp scatter scatter_add empty_like zeros_like ones_like triu tril".split()
)


class Held(TorchDispatchMode):
    """Counts the storages that are made inside, on any device; tensors without storage count as what they would take.

    What a kernel takes for itself and gives back before it returns is not seen.

    Attributes:
        now: bytes that are alive, of those made inside.
        peak: the most that were.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.now = self.peak = 0
        self._alive: dict[int, weakref.ref[torch.UntypedStorage]] = {}

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        super().__exit__(kind, error, trace)  # type: ignore[no-untyped-call]
        self._alive.clear()

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """Nothing is compiled here, and importing the compiler takes longer than a plan."""
        return False

    def mark(self) -> int:
        """Begin the peak anew; the bytes that are alive now."""
        self.peak = self.now
        return self.now

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = _call(function, args, kwargs or {})
        if not getattr(function, "is_view", False):
            given = {s._cdata for s in _storages((args, kwargs))} if function._schema.is_mutable else set()
            for storage in _storages(result):
                if storage._cdata not in given:
                    self._meet(storage)
        return result

    def _meet(self, storage: torch.UntypedStorage) -> None:
        key = storage._cdata
        if key in self._alive:
            return
        size = storage.nbytes()

        def forget(_: object) -> None:
            if self._alive.pop(key, None) is not None:
                self.now -= size

        self._alive[key] = weakref.ref(storage, forget)
        self.now += size
        self.peak = max(self.peak, self.now)


def _storages(values: object) -> Iterator[torch.UntypedStorage]:
    return (value.untyped_storage() for value in _tensors(values))


def _tensors(values: object) -> Iterator[torch.Tensor]:
    return (value for value in tree_leaves(values) if isinstance(value, torch.Tensor))


def _call(function: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """What the call gives.

    Of tensors without storage torch finds many a shape in Python, and imports its compiler to do so, which takes longer
    than a plan. So the commonest are found here; the others are left to torch.
    """
    given = list(_tensors(args))
    name, out = function._schema.name.removeprefix("aten::"), kwargs.get("out")
    if isinstance(out, torch.Tensor) and out.is_meta and out.numel():
        return out  # where it is told to write has its shape
    elsewhere = torch.device(kwargs.get("device") or "meta").type != "meta"
    if not given or out is not None or elsewhere or not all(value.is_meta for value in given):
        return function(*args, **kwargs)
    if name.endswith("_") and function._schema.is_mutable:
        return args[0]
    if name == "nll_loss_forward":
        sizes: tuple[list[int], ...] = (list(given[1].shape) if args[3] == 0 else [], [])
        return tuple(torch.empty(size, dtype=given[0].dtype, device="meta") for size in sizes)
    if name in ("topk", "sort"):
        size = [*given[0].shape[:-1], args[1]] if name == "topk" else given[0].shape
        return tuple(torch.empty(size, dtype=d, device="meta") for d in (given[0].dtype, torch.int64))
    shape = _shape(name, args, given)
    if shape is None:
        return function(*args, **kwargs)
    dtype = kwargs.get("dtype") or given[0].dtype
    if name in SAME_TYPE and len(args) > 1:
        dtype = torch.result_type(*args[:2])
    if name in COMPARISONS:
        dtype = torch.bool
    if name == "where":
        dtype = torch.result_type(*args[1:])
    return torch.empty(shape, dtype=dtype, device="meta")


def _shape(name: str, args: tuple[Any, ...], given: list[torch.Tensor]) -> list[int] | None:
    """The shape of what a call gives, of its tensors; None where torch has to say."""
    first = list(given[0].shape)
    if name in LIKE_FIRST:
        return first
    if name == "repeat":
        times: list[int] = args[1]
        return [a * b for a, b in zip([1] * (len(times) - len(first)) + first, times, strict=True)]
    if name in SAME_TYPE or name in COMPARISONS or name == "where":
        return _broadcast([value.shape for value in given])
    if name in OVER_DIMENSIONS and given[0].is_floating_point():
        named = len(args) > 1 and isinstance(args[1], list)
        return _reduced(given[0].shape, args[1], len(args) > 2 and args[2]) if named else None
    if name == "gather":
        return list(given[1].shape)
    if name in PRODUCTS:
        return [*given[-2].shape[:-1], given[-1].shape[-1]]
    return _chosen(name, args, given) or _put_together(name, args, given)


def _chosen(name: str, args: tuple[Any, ...], given: list[torch.Tensor]) -> list[int] | None:
    """The same of what takes or adds rows and columns."""
    first = list(given[0].shape)
    if name == "slice_backward":
        return list(args[1])
    if name == "constant_pad_nd":  # the last axis first
        for axis, pair in enumerate(zip(args[1][::2], args[1][1::2], strict=True), 1):
            first[-axis] += sum(pair)
        return first
    if name == "index" and len(args[1]) == 1 and given[1].dtype == torch.int64:
        return [*given[1].shape, *first[1:]]
    if name == "index_select":
        first[args[1]] = len(given[1])
        return first
    if name == "_grouped_mm":  # a matrix for every group of rows, or of both arguments' columns and rows
        return ([len(given[2])] if given[1].ndim == 2 else []) + [first[0], given[1].shape[-1]]
    return None


def _put_together(name: str, args: tuple[Any, ...], given: list[torch.Tensor]) -> list[int] | None:
    """The same of tensors one after another along an axis, or along a new one."""
    axis, shape = args[1] if len(args) > 1 else 0, list(given[0].shape)
    if name == "cat" and all(value.ndim for value in given):
        shape[axis] = sum(value.shape[axis] for value in given)
        return shape
    if name == "stack":
        shape.insert(axis, len(given))
        return shape
    return None


def _reduced(shape: torch.Size, dimensions: list[int], keeps: bool) -> list[int]:
    """What is left of a shape by a reduction over some dimensions; over all of them where none is named."""
    gone = {k % len(shape) for k in dimensions or range(len(shape))}
    return [1 if k in gone else size for k, size in enumerate(shape) if keeps or k not in gone]


def _broadcast(shapes: list[torch.Size]) -> list[int]:
    longest = max(map(len, shapes))
    padded = [(1,) * (longest - len(shape)) + tuple(shape) for shape in shapes]
    return [max(sizes) if 0 not in sizes else 0 for sizes in zip(*padded, strict=True)]
