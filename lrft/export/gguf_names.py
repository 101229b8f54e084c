"""Families that are written as GGUF: what llama.cpp calls their tensors, and how it keeps the numbers in them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from lrft.registry.errors import MissingExtra, UsageError

SUFFIXES = (".weight", ".bias")


@dataclass(frozen=True)
class Family:
    """How llama.cpp has a family.

    Attributes:
        arch: its name there.
        interleaved: rotary positions turn neighbouring rows of a head; transformers turns the two halves.
        shifted_norms: norms are kept as 1 + w.
        activation: the one that it computes with.
    """

    arch: str
    interleaved: bool = False
    shifted_norms: bool = False
    activation: str = "silu"


FAMILIES = {
    "llama": Family("llama", interleaved=True),
    "mistral": Family("llama", interleaved=True),
    "qwen2": Family("qwen2"),
    "qwen3": Family("qwen3"),
    "gemma2": Family("gemma2", shifted_norms=True, activation="gelu_pytorch_tanh"),
}


def import_gguf(name: str) -> Any:
    """The `gguf` library.

    Raises:
        MissingExtra: with the line that installs it.
    """
    try:
        import gguf
    except ImportError:
        raise MissingExtra(f"{name}: writing a GGUF file needs `pip install 'lrft[gguf]'`") from None
    return gguf


class Names:
    """Parameter of transformers -> tensor of the file, name and numbers, and back.

    Args:
        config: of the model.
        command: what to call the command in errors.

    Raises:
        UsageError: it is no family that is known here.
        MissingExtra: the `gguf` library is not there.
    """

    def __init__(self, config: Any, command: str) -> None:
        self.config, self.command = config, command
        self.gguf = import_gguf(command)
        found = FAMILIES.get(config.model_type)
        if found is None:
            raise UsageError(
                f"{command}: {config.model_type} models are not written as GGUF here ({', '.join(FAMILIES)} are); run "
                "`lrft merge` and llama.cpp's own convert_hf_to_gguf.py on the merged folder"
            )
        self.family = found

    @cached_property
    def _map(self) -> Any:
        kinds = {name: kind for kind, name in self.gguf.MODEL_ARCH_NAMES.items()}
        return self.gguf.get_tensor_name_map(kinds[self.family.arch], self.config.num_hidden_layers)

    def tensor(self, name: str) -> str:
        """What the file calls the parameter `name`.

        Raises:
            UsageError: it has no place for it.
        """
        found: str | None = self._map.get_name(name, try_suffixes=SUFFIXES)
        if found is None:
            raise UsageError(
                f"{self.command}: llama.cpp's {self.family.arch} has no place for {name}, so the run cannot be "
                "written as GGUF"
            )
        return found

    def site(self, name: str) -> str:
        """What the file calls the weight of the layer at the path `name`."""
        return self.tensor(f"{name}.weight")

    def to_file(self, name: str, values: Tensor) -> Tensor:
        """The numbers of the parameter `name`, or of a factor with its rows, as the file keeps them."""
        if self._shifted(name):
            return values + 1
        heads = self._heads(name)
        return values if heads is None else _rows(values, lambda x: (heads, 2, x // heads // 2))

    def from_file(self, name: str, values: Tensor) -> Tensor:
        """Back."""
        if self._shifted(name):
            return values - 1
        heads = self._heads(name)
        return values if heads is None else _rows(values, lambda x: (heads, x // heads // 2, 2))

    def _shifted(self, name: str) -> bool:
        return self.family.shifted_norms and name.endswith("norm.weight")

    def _heads(self, name: str) -> int | None:
        """How many heads the rows of a rotated map are divided among; None of other maps."""
        if not self.family.interleaved:
            return None
        leaf = name.removesuffix(".weight").removesuffix(".bias").rpartition(".")[2]
        known = {"q_proj": self.config.num_attention_heads, "k_proj": self.config.num_key_value_heads}
        return known.get(leaf)


def _rows(values: Tensor, shape: Callable[[int], tuple[int, int, int]]) -> Tensor:
    """The rows of every head, seen as two axes, with these exchanged."""
    cut = values.reshape(*shape(values.shape[0]), *values.shape[1:])
    return torch.swapaxes(cut, 1, 2).reshape(values.shape)
