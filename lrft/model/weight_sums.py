"""The identity of a base model by all of its values, hashed as they are loaded: one changed weight is another model."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

DIGITS = 8  # of a tensor's sum that a record keeps, to name the tensor that changed
NAMED = 4096  # tensors of which a record keeps them


@dataclass(frozen=True)
class WeightSums:
    """sha256 of every parameter and persistent buffer, by name: of its name, shape, dtype and all its bytes.

    They are of the values as loaded, in `model.dtype`: the same weights in other shards have the same sums.
    """

    each: Mapping[str, str]

    @property
    def whole(self) -> str:
        """sha256 over all of them."""
        digest = hashlib.sha256()
        for name in sorted(self.each):
            digest.update(f"{name} {self.each[name]}\n".encode())
        return digest.hexdigest()

    @property
    def digits(self) -> str | None:
        """The first digits of each in the order of the names, in one text; None of too many tensors."""
        if len(self.each) > NAMED:
            return None
        return "".join(self.each[name][:DIGITS] for name in sorted(self.each))

    def changed(self, digits: str) -> list[str]:
        """The tensors whose sums begin otherwise than `digits` has it; none where those are of other tensors."""
        names = sorted(self.each)
        if len(digits) != DIGITS * len(names):
            return []
        before = (digits[k : k + DIGITS] for k in range(0, len(digits), DIGITS))
        return [name for name, was in zip(names, before, strict=True) if not self.each[name].startswith(was)]


def stored_tensors(hf: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """What a checkpoint of the model holds, tied tensors once: parameters, and the buffers that are saved."""
    yield from hf.named_parameters()
    saved = {
        f"{path}.{name}" if path else name
        for path, module in hf.named_modules()
        for name in module._buffers
        if name not in module._non_persistent_buffers_set
    }
    yield from ((name, buffer) for name, buffer in hf.named_buffers() if name in saved)


def sum_tensor(name: str, tensor: Tensor) -> str:
    """sha256 of one tensor, whose bytes are not copied where it lies on the CPU in one piece."""
    held = tensor.detach().cpu().contiguous()
    digest = hashlib.sha256(f"{name} {tuple(held.shape)} {held.dtype}\n".encode())
    digest.update(held.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
