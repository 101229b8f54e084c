"""The inputs of layers that are computed again: written behind the forward pass, read ahead of the backward pass."""

from __future__ import annotations

import weakref
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks

from lrft.core.shelf import SMALL, Beside, Slot
from lrft.files.pages import PageFile
from lrft.model.hf import HF
from lrft.model.recompute import recomputable
from lrft.registry.errors import RecipeError

WAITING = 2  # tensors that may wait to be written


class PagedActivations:
    """Keeps what a recomputed layer saves, its input, in a file until the backward pass asks for it.

    A tensor lives until a thread beside has written it, of which `WAITING` may be; the backward pass finds the one that
    it needs, while the thread reads the one before. Layers of one micro-batch take as many slots, which the next one
    has again.

    Attributes:
        written, read: tensors that went through the file.
    """

    def __init__(self, file: PageFile) -> None:
        self.file, self.written, self.read = file, 0, 0
        self.beside = Beside()
        self._free: list[Slot] = []
        self._order: list[weakref.ref[_Held]] = []
        self._waiting: deque[Future[None]] = deque()

    def settle(self, hf: HF, size: int) -> None:
        """Take over what the layers of a model keep, whose inputs have at most `size` bytes, and take the room for it.

        Raises:
            RecipeError: the model's code switches all of its layers at once.
            WriteError: the disk is full.
        """
        layers: list[Any] = [
            layer for layer in recomputable(hf) if getattr(layer, "gradient_checkpointing", False)
        ]
        if not layers:
            raise RecipeError(
                f"{type(hf).__name__} computes no layer again by itself, so none has an input to write; write none",
                "offload.activations",
            )
        self._free = [Slot(self.file, size) for _ in layers]
        for layer in layers:
            around = partial(self._around, layer._gradient_checkpointing_func)
            layer._gradient_checkpointing_func = around

    def close(self) -> None:
        """Write nothing more."""
        self.beside.close()

    def _around(self, checkpoint: Callable[..., Any], run: Callable[..., Any], *inputs: Any) -> Any:
        with saved_tensors_hooks(self._put, self._take):
            return checkpoint(run, *inputs)

    def _put(self, tensor: Tensor) -> Tensor | _Held:
        small = tensor.nbytes < SMALL or not tensor.is_floating_point() or not tensor.is_contiguous()
        if small or self.beside.closed:
            return tensor
        while len(self._waiting) >= WAITING:
            self._waiting.popleft().result()
        slot = self._slot(tensor.nbytes)
        held = _Held(tensor, slot)
        weakref.finalize(held, self._free.append, slot)
        self._order = [one for one in self._order if one() is not None]
        self._order.append(weakref.ref(held))
        self._waiting.append(self.beside.do(held.write))
        self.written += 1
        return held

    def _take(self, held: Tensor | _Held) -> Tensor:
        if isinstance(held, Tensor):
            return held
        alive = [one() for one in self._order]
        place = alive.index(held)
        tensor = held.take()
        before = alive[place - 1] if place else None
        if before is not None:
            before.ask(self.beside)
        self.read += 1
        return tensor

    def _slot(self, size: int) -> Slot:
        fits = [slot for slot in self._free if slot.size >= size]
        if not fits:
            return Slot(self.file, size)
        slot = min(fits, key=lambda one: one.size)
        self._free.remove(slot)
        return slot


class _Held:
    """A tensor on its way to the file, in it, or on its way back."""

    def __init__(self, tensor: Tensor, slot: Slot) -> None:
        self.slot, self.shape, self.dtype = slot, tensor.shape, tensor.dtype
        self._tensor: Tensor | None = tensor.detach()
        self._version = tensor._version
        self._coming: Future[None] | None = None
        self._back: Tensor | None = None

    @torch.no_grad()
    def write(self) -> None:
        """Copy it into the file, and let it go."""
        tensor = self._tensor
        assert tensor is not None, "written once"
        self._place().copy_(tensor)
        self.slot.drop()
        assert tensor._version == self._version, "the input of a layer was written to after the layer had it"
        self._tensor = None

    def ask(self, beside: Beside) -> None:
        """Begin to bring it back, where it is not still there."""
        if self._tensor is None and self._coming is None:
            self._coming = beside.do(self._read)

    def take(self) -> Tensor:
        """It, as it was; nothing of it stays here."""
        tensor = self._tensor
        if tensor is not None:
            return tensor
        if self._coming is None:
            self._read()
        else:
            self._coming.result()
        back, self._back, self._coming = self._back, None, None
        assert back is not None, "it was read"
        return back

    @torch.no_grad()
    def _read(self) -> None:
        self._back = self._place().clone()
        self.slot.drop()

    def _place(self) -> Tensor:
        return self.slot.tensor(self.shape, self.dtype)
