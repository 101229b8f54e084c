"""Frozen weights that lie in a file, block by block: the block that computes is in memory, and the next on its way."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from threading import Lock
from typing import Any

import torch
from torch import Tensor, nn

from lrft.core.adapted import Adapted
from lrft.core.frozen import FrozenLinear
from lrft.core.less import Less
from lrft.core.shelf import Beside, Slot, aligned
from lrft.files.pages import PageFile
from lrft.model.causal_lm import CausalLM
from lrft.model.hf import HF
from lrft.model.recompute import recomputable
from lrft.registry.errors import RecipeError

SMALL = 2**16  # bytes of a parameter outside of frozen layers, such as a norm, that stays in memory


class PagedWeights:
    """Puts every frozen layer into the file as it is made, as it is stored, and the embedding and the head at the end.

    The tensors of a layer are then the pages of the file themselves, so everything else sees the layer that it was, and
    computes the same bits. What is in memory only follows: entering a block lets all go but that block and the next,
    which a thread beside reads meanwhile: the one after it in a forward pass, the one before it in a backward pass. The
    head comes after the last block.

    Attributes:
        bytes: that lie in the file.
        window: of the blocks, once the model is whole.
    """

    def __init__(self, file: PageFile) -> None:
        self.file, self.bytes, self._first = file, 0, file.size
        self.window: Window | None = None
        self._slots: list[tuple[str, Slot]] = []

    def begin(self) -> None:
        """A model is going to be put together; pages of one that was not finished are had again."""
        self._slots.clear()
        self.file.size, self.bytes = self._first, 0

    def put(self, name: str, layer: FrozenLinear | Adapted) -> None:
        """Move what a layer's base is stored in, its bias too, into the file.

        Args:
            name: path of the layer.
        """
        base = layer.base if isinstance(layer, Adapted) else layer
        homes = [
            (module, key, tensor)
            for module in base.modules()
            if isinstance(module, FrozenLinear)
            for key, tensor in module._buffers.items()
            if tensor is not None
        ]
        laid = self._lay(name, [tensor for _, _, tensor in homes])
        for (module, key, _), tensor in zip(homes, laid, strict=True):
            module._buffers[key] = tensor

    def settle(self, model: CausalLM) -> None:
        """Move the other frozen weights of any size, and let the blocks of the model say when they are entered.

        Raises:
            RecipeError: the model's code has no blocks.
        """
        blocks = recomputable(model.hf)
        if not blocks:
            raise RecipeError(
                f"the code of {type(model.hf).__name__} has no blocks that come one after another; write none",
                "offload.weights",
            )
        ends = {name: self._put_parameter(name, one) for name, one in _others(model.hf)}
        head = model.hf.get_output_embeddings()
        last = [] if head is None else [slot for one, slot in ends.values() if one is head.weight]
        paths = {module: name for name, module in model.hf.named_modules()}
        prefixes = [f"{paths[block]}." for block in blocks]
        groups = [[slot for name, slot in self._slots if name.startswith(prefix)] for prefix in prefixes]
        known = {id(slot) for group in (*groups, last) for slot in group}
        self.window = Window([*groups, last], [slot for _, slot in self._slots if id(slot) not in known])
        for place, block in enumerate(blocks):
            block.register_forward_pre_hook(partial(_entered, self.window, place))
            block.register_forward_hook(partial(_left, self.window, place))

    def close(self) -> None:
        """Bring nothing more."""
        if self.window is not None:
            self.window.close()

    def _put_parameter(self, name: str, parameter: nn.Parameter) -> tuple[nn.Parameter, Slot]:
        (parameter.data,) = self._lay(name, [parameter.detach()])
        return parameter, self._slots[-1][1]

    def _lay(self, name: str, tensors: Sequence[Tensor]) -> list[Tensor]:
        if not tensors:
            return []
        slot = Slot(self.file, sum(aligned(tensor.nbytes) for tensor in tensors))
        laid = slot.lay({str(place): tensor for place, tensor in enumerate(tensors)})
        slot.drop()
        self.bytes += slot.size
        self._slots.append((name, slot))
        return list(laid.values())


class Window:
    """Which groups of slots are in memory: the one that is entered, and the one that comes.

    Args:
        groups: in the order in which a forward pass enters them.
        others: what is touched before the first of them, and then let go.

    Attributes:
        entered: how often a group was, and
        ready: how often all of it was there by then.
    """

    def __init__(self, groups: Sequence[Sequence[Slot]], others: Sequence[Slot]) -> None:
        self.groups, self.others = groups, others
        self.entered = self.ready = 0
        self.beside = Beside()
        self._lock = Lock()
        self._coming = -1
        self._touched: set[int] = set()
        self._whole: set[int] = set()

    def enter(self, place: int, step: int) -> None:
        """Group `place` is about to be used, and the one `step` further after it."""
        coming = place + step
        with self._lock:
            self.entered += 1
            self.ready += place in self._whole
            self._coming = coming
            gone = self._touched - {place, coming}
            self._touched = (self._touched & {coming}) | {place}
            self._whole &= self._touched
        for slot in self.others:
            slot.drop()
        for group in gone:
            for slot in self.groups[group]:
                slot.drop()
        if 0 <= coming < len(self.groups) and not self.beside.closed:
            self.beside.do(self._bring, coming)

    def close(self) -> None:
        """Bring nothing more."""
        with self._lock:
            self._coming = -1
        self.beside.close()

    def _bring(self, group: int) -> None:
        for slot in self.groups[group]:
            with self._lock:
                if self._coming != group:  # the model was faster than the disk, and is past it or in it
                    return
                self._touched.add(group)
            slot.fetch()
        with self._lock:
            if group in self._touched:
                self._whole.add(group)


def _others(hf: HF) -> list[tuple[str, nn.Parameter]]:
    """Frozen parameters of any size that belong to no adapter."""
    parts: list[nn.Module] = [one.adapter for one in hf.modules() if isinstance(one, Adapted)]
    parts += [one.start for one in hf.modules() if isinstance(one, Less)]
    inside = {id(module) for part in parts for module in part.modules()}
    found: dict[nn.Parameter, str] = {}
    for path, module in hf.named_modules():
        for key, one in module._parameters.items() if id(module) not in inside else ():
            if one is not None and not one.requires_grad and one.nbytes >= SMALL:
                found.setdefault(one, f"{path}.{key}")
    return [(name, one) for one, name in found.items()]


def _entered(window: Window, place: int, block: nn.Module, inputs: tuple[Any, ...]) -> None:
    window.enter(place, -1 if _goes_back() else 1)


def _left(window: Window, place: int, block: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
    """In a backward pass the block is entered when the gradient of what it gave is there."""
    hidden = output[0] if isinstance(output, tuple) else output
    if isinstance(hidden, Tensor) and hidden.requires_grad and not _goes_back():
        hidden.register_hook(lambda grad: window.enter(place, -1))


def _goes_back() -> bool:
    """Whether this is within a backward pass, as where a layer is computed again."""
    inside: int = torch._C._current_graph_task_id()
    return inside != -1
