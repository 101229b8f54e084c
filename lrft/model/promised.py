"""Promises: parameters without storage that remember which tensors of which files their values are made of."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode


class NotStreamed(Exception):
    """The model has to be read whole; the message is why, and empty where nobody needs to be told."""


@dataclass(frozen=True)
class Stored:
    """A tensor that is still in its safetensors file, as far as transformers looks at one: `[...]`, then `to`."""

    file: str
    key: str
    shape: tuple[int, ...]
    dtype: torch.dtype

    def __getitem__(self, index: object) -> Stored:
        if index is not Ellipsis:
            raise NotStreamed("transformers takes its tensors apart while it loads them")
        return self

    def to(self, device: object = None, dtype: torch.dtype | None = None) -> nn.Parameter:
        """A parameter without storage that remembers where its values are."""
        return promise(self, dtype or self.dtype)

    def read(self, dtype: torch.dtype) -> Tensor:
        """The values, rounded to `dtype` once."""
        return read_tensor(self.file, self.key).to(dtype)

    def part(self, index: int) -> Stored:
        """The matrix at `index` of a tensor of three dimensions; nothing else of it is read."""
        return Part(self.file, self.key, self.shape[1:], self.dtype, index)


@dataclass(frozen=True)
class Part(Stored):
    """One matrix of a tensor of three dimensions."""

    index: int

    def read(self, dtype: torch.dtype) -> Tensor:
        from safetensors import safe_open

        with safe_open(self.file, framework="pt") as opened:
            matrix: Tensor = opened.get_slice(self.key)[self.index]
        return matrix.to(dtype)


@dataclass(frozen=True)
class Turned(Stored):
    """A matrix as (out, in) whose tensor has it as (in, out)."""

    inner: Stored

    def read(self, dtype: torch.dtype) -> Tensor:
        return self.inner.read(dtype).mT.contiguous()


@dataclass(frozen=True)
class Joined(Stored):
    """Several tensors one after another along `dim`, or along a new one where they are `stacked`.

    Attributes:
        file, key: of the first.
    """

    parts: tuple[Stored, ...]
    dim: int
    stacked: bool

    def read(self, dtype: torch.dtype) -> Tensor:
        return (torch.stack if self.stacked else torch.cat)([p.read(dtype) for p in self.parts], self.dim)

    def part(self, index: int) -> Stored:
        if self.stacked and self.dim == 0:
            return self.parts[index]
        if self.dim == 0:
            raise NotStreamed("experts stand in several tensors one after another")
        inner = tuple(one.part(index) for one in self.parts)
        return Joined(
            inner[0].file, inner[0].key, self.shape[1:], self.dtype, inner, self.dim - 1, self.stacked
        )


class Joining(TorchFunctionMode):
    """Lets promises that torch stacks or concatenates be one of all of them; what else is done to one leaves none."""

    def __torch_function__(
        self, function: Callable[..., Any], types: Any, args: Sequence[Any] = (), kwargs: Any = None
    ) -> Any:
        result = function(*args, **(kwargs or {}))
        if function in (torch.stack, torch.cat) and isinstance(result, Tensor) and result.is_meta:
            return _joined(function is torch.stack, result, args, kwargs or {})
        return result


def _joined(stacked: bool, result: Tensor, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Tensor:
    given = list(args[0] if args else kwargs["tensors"])
    parts = [stored_at(tensor) for tensor in given]
    # What is stored in few bits is taken as it is, or not at all.
    known = [part for part in parts if part is not None and type(part) in (Stored, Joined)]
    if len(known) < len(parts) or any(tensor.dtype != result.dtype for tensor in given):
        return result
    dim = int(args[1] if len(args) > 1 else kwargs.get("dim", 0)) % result.ndim
    first = known[0]
    whole = Joined(first.file, first.key, tuple(result.shape), first.dtype, tuple(known), dim, stacked)
    return promise(whole, result.dtype)


def promise(stored: Stored, dtype: torch.dtype) -> nn.Parameter:
    """A parameter of `dtype` without storage whose values are `stored`."""
    made = nn.Parameter(torch.empty(stored.shape, dtype=dtype, device="meta"), requires_grad=False)
    made.stored = stored  # type: ignore[attr-defined]
    return made


def read_tensor(file: str, key: str) -> Tensor:
    """One tensor of a safetensors file, which is mapped only as long as the tensor lives."""
    from safetensors import safe_open

    with safe_open(file, framework="pt") as opened:
        tensor: Tensor = opened.get_tensor(key)
    return tensor


def stored_at(parameter: Tensor) -> Stored | None:
    """Where the values of a parameter without storage are; None where it has its own, or they are nowhere."""
    found: Stored | None = getattr(parameter, "stored", None)
    return found
