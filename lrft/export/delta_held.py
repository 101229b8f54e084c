"""The differences of a folder as they are asked for: each is read, decoded where it is in few bits, and not kept."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from lrft.export.delta import RECORD, TENSORS, Delta
from lrft.export.mixed_bits import Vectors, read_vectors
from lrft.registry.errors import DamagedFile


class Held(Mapping[str, Tensor]):
    """The differences of a folder, in float32, compressed layers decoded; each is read when it is asked for.

    Raises:
        DamagedFile: a tensor is missing, of another shape, or not finite; the last, and what is wrong with a compressed
            layer, when it is asked for.
    """

    def __init__(self, folder: Path, record: Delta) -> None:
        self.file, self.shapes, self.layers = folder / TENSORS, record["shapes"], record.get("layers", {})
        with self._open() as held:
            whole = {name: held.get_slice(name).get_shape() for name in held.keys() if "::" not in name}  # noqa: SIM118
        for name, shape in whole.items():
            self._check(name, list(shape))
        self.names = [*whole, *self.layers]

    def __getitem__(self, name: str) -> Tensor:
        with self._open() as held:
            if name not in self.layers:
                tensor: Tensor = held.get_tensor(name)
                return self._finite(name, tensor.float())
            out_features, in_features = self.shapes[name]
            total = torch.zeros(out_features, in_features)
            try:
                for vectors in _groups(held, name, self.layers[name], (out_features, in_features)):
                    total += vectors.dense()
            except (KeyError, RuntimeError, IndexError) as error:
                problem = f"does not hold {name} as {RECORD} says ({error})"
                raise DamagedFile(self.file, problem) from None
        self._check(name, list(total.shape))
        return self._finite(name, total)

    def __contains__(self, name: object) -> bool:
        return name in self.names

    def __iter__(self) -> Iterator[str]:
        return iter(self.names)

    def __len__(self) -> int:
        return len(self.names)

    def _open(self) -> Any:
        try:
            return safe_open(self.file, framework="pt")
        except SafetensorError as error:
            raise DamagedFile(self.file, f"holds no tensors ({error})") from None

    def _finite(self, name: str, tensor: Tensor) -> Tensor:
        if not tensor.isfinite().all():
            raise DamagedFile(self.file, f"holds numbers of {name} that are not finite")
        return tensor

    def _check(self, name: str, shape: list[int]) -> None:
        if shape != self.shapes.get(name):
            raise DamagedFile(self.file, f"holds {name} in another shape than {RECORD} says")


def _groups(held: Any, name: str, groups: list[list[int]], shape: tuple[int, int]) -> Iterator[Vectors]:
    names = list(held.keys())
    for number, (bits, _) in enumerate(groups):
        prefix = f"{name}::{number}."
        own = {key.removeprefix(prefix): held.get_tensor(key) for key in names if key.startswith(prefix)}
        yield read_vectors(own, shape, bits)
