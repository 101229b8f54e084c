"""The files of a model, laid out as transformers saves it before any value is there, for each to be written later.

transformers names, converts and shards as ever, and is given tensors without storage. Where it would write a file, room
is made for what the file will hold. What it does to a tensor other than calling it by another name leaves no such
tensor, and the model is then written whole.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lrft.files.tensors_written import Gathered, Place, lay_out
from lrft.files.write import remove_file
from lrft.model.hf import HF
from lrft.model.stored import NotStreamed

NAMES = {
    torch.bool: "BOOL",
    torch.uint8: "U8",
    torch.int8: "I8",
    torch.int16: "I16",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int32: "I32",
    torch.float32: "F32",
    torch.float64: "F64",
    torch.int64: "I64",
}


class Layout:
    """Where the parameters of a model without values will stand in its files.

    Args:
        hf: a model of which every parameter is without storage (`hollow`).

    Attributes:
        held: what the files hold, to save the model with.
        places: of parameters by name, once it has been saved.
    """

    def __init__(self, hf: HF) -> None:
        own = {id(parameter): name for name, parameter in hf.named_parameters()}
        everywhere = dict(hf.named_parameters(remove_duplicate=False))
        self.held: dict[str, Tensor] = dict(hf.state_dict())
        self.names = {
            id(tensor): own[id(everywhere[key])] for key, tensor in self.held.items() if key in everywhere
        }
        self.places: dict[str, Place] = {}
        self._wanted = set(own.values())
        self._files: list[Path] = []

    @contextmanager
    def saving(self) -> Iterator[None]:
        """Let the saving of the model inside make room in the files for `held`; other tensors are written.

        Raises:
            NotStreamed: a tensor would not be written as it is.
            OSError: the disk is full or not writable.
        """
        from transformers import modeling_utils

        library: Any = modeling_utils
        save = getattr(library, "safe_save_file", None)
        if save is None:
            raise NotStreamed("this transformers writes its files in a way that lrft does not know")
        library.safe_save_file = self._make_room
        held = list(self.held.values())  # keeps what is told apart by id
        try:
            yield
            if left := sorted(self._wanted - self.places.keys()):
                raise NotStreamed(f"transformers does not write {left[0]} as it is")
        except NotStreamed:
            for file in self._files:  # of which no value was written
                remove_file(file)
            raise
        finally:
            library.safe_save_file = save
            del held

    def _make_room(
        self, tensors: Mapping[str, Tensor], filename: str, metadata: Mapping[str, str] | None = None
    ) -> None:
        """What stands for safetensors' `save_file`."""
        for key, tensor in tensors.items():
            if tensor.dtype not in NAMES or (tensor.is_meta and id(tensor) not in self.names):
                raise NotStreamed(f"{key} is made of other tensors of the model")
        self._files.append(Path(filename))
        shapes = {key: (NAMES[tensor.dtype], tuple(tensor.shape)) for key, tensor in tensors.items()}
        for key, place in lay_out(Path(filename), shapes, metadata or {}).items():
            tensor = tensors[key]
            if tensor.is_meta:
                self.places[self.names[id(tensor)]] = place
            else:
                write_tensor(place, tensor)


def write_tensor(place: Place, tensor: Tensor) -> None:
    """Fill a place with a tensor.

    Raises:
        OSError: the disk is full or not writable.
    """
    place.write(bytes_of(tensor))


def gather(gathered: Gathered, name: str, tensor: Tensor) -> None:
    """Keep a tensor of a file for later.

    Raises:
        OSError: the disk is full or not writable.
    """
    gathered.add(name, NAMES[tensor.dtype], tuple(tensor.shape), bytes_of(tensor))


def bytes_of(tensor: Tensor) -> bytes | memoryview:
    """What a file holds of a tensor."""
    held = tensor.detach().cpu().contiguous()
    return held.reshape(-1).view(torch.uint8).numpy().data if held.numel() else b""


def hollow(hf: HF, dtype: torch.dtype) -> dict[str, nn.Parameter]:
    """Take every parameter's values out of a model, which is then one in `dtype`; the parameters that were, by name."""
    taken = dict(hf.named_parameters())
    empty = {
        id(p): nn.Parameter(
            torch.empty(p.shape, dtype=dtype if p.is_floating_point() else p.dtype, device="meta"), False
        )
        for p in taken.values()
    }
    for module in hf.modules():
        for leaf, parameter in module._parameters.items():
            if parameter is not None:
                module._parameters[leaf] = empty[id(parameter)]
    return taken
