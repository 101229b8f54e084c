"""The optimizer's state in a file, stepped a block of the model at a time, the next block's on its way."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import groupby

import torch
from torch import Tensor
from torch.optim.optimizer import StateDict

from lrft.core.params import ParamInfo
from lrft.core.shelf import SMALL, Beside, Slot
from lrft.files.pages import PageFile
from lrft.training.updates import Float32, Wrapper


class PagedState(Wrapper):
    """Steps an optimizer whose updates of parameters do not depend on one another, on some of them at a time.

    Every tensor that it keeps lies in pages of the file from the step on that made it: while one block is stepped a
    thread beside reads what the next one needs, and what the last one changed is the file's. The step itself is the
    optimizer's own, on the parameters that have a gradient just then; what it is asked, and what a checkpoint holds of
    it, are as without this.

    Args:
        inner: the optimizer.
        infos: its parameters.
        file: where.
    """

    def __init__(self, inner: torch.optim.Optimizer, infos: Sequence[ParamInfo], file: PageFile) -> None:
        super().__init__(infos, inner, inner.param_groups)
        self.inner, self.file, self.state = inner, file, inner.state
        self.blocks = [[i.param for i in part] for _, part in groupby(infos, key=lambda info: info.block)]
        self.beside = Beside()
        self._slots: dict[tuple[int, str], tuple[Slot, Tensor]] = {}

    @torch.no_grad()
    def step(self, closure: object = None) -> None:  # type: ignore[override]
        """One step of all, block by block."""
        grads = {param: param.grad for block in self.blocks for param in block}
        self.zero_grad()
        for place, block in enumerate(self.blocks):
            for param in self.blocks[place + 1] if place + 1 < len(self.blocks) else ():
                for slot in self._slots_of(param):
                    self.beside.do(slot.fetch)
            for param in block:
                param.grad = grads[param]
            self._step_some()
            for param in block:
                param.grad = None
                self._put_away(param)
        for param, grad in grads.items():  # who looks after the step finds them
            param.grad = grad
        if isinstance(self.inner, Float32):
            self.inner.steps += 1

    def state_dict(self) -> StateDict:
        return self.inner.state_dict()

    def load_state_dict(self, state_dict: StateDict) -> None:
        self.inner.load_state_dict(state_dict)
        self.param_groups, self.state = self.inner.param_groups, self.inner.state
        for block in self.blocks:
            for param in block:
                self._put_away(param)

    def close(self) -> None:
        """Bring nothing more."""
        self.beside.close()

    def _step_some(self) -> None:
        if isinstance(self.inner, Float32):
            self.inner.step_some()
        else:
            self.inner.step()

    def _put_away(self, param: Tensor) -> None:
        """Let the state of a parameter be pages, and let them go from memory."""
        for path, tensor in self._tensors(self.state.get(param, {})):
            slot, laid = self._slots.get((id(param), path), (None, None))
            if laid is None or slot is None or laid.data_ptr() != tensor.data_ptr():
                if slot is None or slot.size < tensor.nbytes:
                    slot = Slot(self.file, tensor.nbytes)
                laid = slot.lay({path: tensor})[path]
                self._slots[id(param), path] = slot, laid
                tensor.data = laid
            slot.drop()

    def _slots_of(self, param: Tensor) -> list[Slot]:
        return [self._slots[key][0] for key in self._slots if key[0] == id(param)]

    def _tensors(self, value: object, path: str = "") -> Iterator[tuple[str, Tensor]]:
        """Every tensor of its own that a state holds, of a page or more, with where it stands."""
        if isinstance(value, Tensor) and value.nbytes >= SMALL and value.is_contiguous():
            yield path, value
        elif isinstance(value, dict):
            for key, inner in value.items():
                if key not in self.shared_state:
                    yield from self._tensors(inner, f"{path}.{key}")
        elif isinstance(value, list | tuple):
            for index, inner in enumerate(value):
                yield from self._tensors(inner, f"{path}.{index}")
