"""Tensors as Flower's records, and back: numpy has no bfloat16, whose bits travel as integers under a marked name."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from flwr.app import Array, ArrayRecord
from torch import Tensor

from lrft.core.aggregate import Tensors

BITS = "bfloat16:"  # before the name of a tensor whose bits travel


def to_record(tensors: Mapping[str, Tensor]) -> ArrayRecord:
    """Every tensor by its name."""
    found = ArrayRecord()
    for name, value in tensors.items():
        plain = value.detach().cpu().contiguous()
        if plain.dtype == torch.bfloat16:
            found[BITS + name] = Array(plain.view(torch.int16).numpy())
        else:
            found[name] = Array(plain.numpy())
    return found


def to_tensors(record: Any) -> Tensors:
    """The inverse, on the CPU."""
    found: Tensors = {}
    for name, array in record.items():
        value = torch.from_numpy(array.numpy().copy())
        if name.startswith(BITS):
            found[name.removeprefix(BITS)] = value.view(torch.bfloat16)
        else:
            found[name] = value
    return found
