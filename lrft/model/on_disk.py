"""Parameters that live in files while a model is put together, so that it need not fit into memory."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from itertools import count
from pathlib import Path

import torch
from torch import nn
from torch.nn.modules.module import register_module_parameter_registration_hook


@contextmanager
def parameters_on_disk(folder: Path, dtype: torch.dtype) -> Iterator[None]:
    """Move every parameter that a module is given into a file of its own, rounded to `dtype`.

    The system reads and drops such pages as it has room. Parameters without storage, and those that are in files
    already, stay as they are, so that tied ones stay tied.

    Args:
        folder: made; has to outlive the parameters.
    """
    folder.mkdir()
    numbers = count()

    def move(module: nn.Module, name: str, parameter: nn.Parameter | None) -> nn.Parameter | None:
        if parameter is None or parameter.is_meta or not parameter.numel():
            return None
        if parameter.untyped_storage().filename is not None:
            return None
        file = str(folder / str(next(numbers)))
        values = torch.from_file(file, shared=True, size=parameter.numel(), dtype=dtype).view(parameter.shape)
        values.copy_(parameter.detach())
        moved = nn.Parameter(values, parameter.requires_grad)
        moved.__dict__.update(parameter.__dict__)  # what transformers has noted of it
        return moved

    handle = register_module_parameter_registration_hook(move)  # type: ignore[arg-type]
    try:
        yield
    finally:
        handle.remove()
