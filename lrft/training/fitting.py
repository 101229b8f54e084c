"""Whether the state that a checkpoint holds can be that of a run's optimizer, before it is loaded."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from torch import Tensor

from lrft.registry.json import Json
from lrft.training.flatten import INTEGER_KEYS, TENSOR

OF_PARAMETERS = ("state", "masters")  # keys of a state_dict below which every parameter has an entry


@dataclass(frozen=True)
class Expected:
    """What an optimizer keeps after a step, flattened; empty where nothing is known.

    Attributes:
        tensors: path -> a tensor of the same shape and dtype.
    """

    tensors: Mapping[str, Tensor]
    values: Json


def misfit(tensors: Mapping[str, Tensor], values: Json, expected: Expected) -> str:
    """How a saved state differs in shapes, dtypes or kinds from what is expected; an empty string where it fits.

    What another number of steps may add, or leave out, is let through: a parameter that had no gradient has no state
    yet, one whose turn it is not has another.
    """
    known = dict(_leaves(expected.values, expected.tensors))
    for path, found in _leaves(values, tensors):
        if path in known and _is_of_parameter(path) and found != known[path]:
            return f"{path} is {found}, where {known[path]} is meant"
    return ""


def _is_of_parameter(path: str) -> bool:
    return any(part in OF_PARAMETERS for part in path.split(".")[:-1])


def _leaves(value: Json, tensors: Mapping[str, Tensor], path: str = "") -> Iterator[tuple[str, str]]:
    """Path -> what stands there, in words."""
    if isinstance(value, list):
        value = {str(place): inner for place, inner in enumerate(value)}
    if not isinstance(value, dict):
        yield path, "a number" if isinstance(value, int | float) else f"a {type(value).__name__}"
    elif set(value) == {TENSOR}:
        tensor = tensors[str(value[TENSOR])]
        kind = str(tensor.dtype).removeprefix("torch.")
        yield path, f"{kind} {list(tensor.shape)}"
    elif set(value) == {INTEGER_KEYS}:
        yield from _leaves(value[INTEGER_KEYS], tensors, path)
    else:
        for key, inner in value.items():
            yield from _leaves(inner, tensors, f"{path}.{key}" if path else key)
