"""Whether the state that a checkpoint holds can be that of a run's optimizer, before it is loaded."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from torch import Tensor

from lrft.registry.json import Json
from lrft.training.flatten import INTEGER_KEYS, TENSOR

COMPARED = (
    "state",
    "masters",
    "param_groups",
)  # keys of a state_dict: of every parameter, and of their groups
PLACES = "params"  # of a group, which parameters are its own
NOTHING = "a NoneType"


@dataclass(frozen=True)
class Expected:
    """What an optimizer keeps after a step, flattened; empty where nothing is known.

    Attributes:
        tensors: path -> a tensor of the same shape and dtype.
    """

    tensors: Mapping[str, Tensor]
    values: Json


def misfit(tensors: Mapping[str, Tensor], values: Json, expected: Expected, begun_whole: bool = False) -> str:
    """How a saved state differs in shapes, dtypes or kinds from what is expected; an empty string where it fits.

    What another number of steps may add, or leave out, is let through: a parameter that had no gradient has no state
    yet, one whose turn it is not has another.

    Args:
        begun_whole: what is kept of a parameter at all is all there.
    """
    known, found = (dict(_leaves(one.values, one.tensors)) for one in (expected, Expected(tensors, values)))
    for path, wanted in known.items():
        within = path.split(".")[:-1]
        if any(part in COMPARED for part in within) and found.get(path, wanted) != wanted:
            return f"{path} is {found[path]}, where {wanted} is meant"
        of_one = begun_whole and within and within[-1] not in COMPARED  # those hold some parameters, or all
        there = of_one and any(one.startswith(f"{'.'.join(within)}.") for one in found)
        if path not in found and (PLACES in within or there):
            return f"{path} is missing"
    return ""


def unlike(tensors: Mapping[str, Tensor], values: Json, known: Expected, later: bool = False) -> str:
    """What in a saved state is of another shape, dtype or kind than is known of it, and how, or "".

    What is nothing yet may become anything, and what is gone is missed where it is taken.

    Args:
        known: what is kept where nothing was done yet; with `later`, what is there once it was.
    """
    wanted, found = (dict(_leaves(one.values, one.tensors)) for one in (known, Expected(tensors, values)))
    for path, kind in wanted.items():
        there = found.get(path, kind)
        if kind not in (NOTHING, there) and not (later and there == NOTHING):
            return f"{path} is {there}, where {kind} is meant"
    return ""


def _kind(tensor: Tensor) -> str:
    return f"{str(tensor.dtype).removeprefix('torch.')} {list(tensor.shape)}"


def _leaves(value: Json, tensors: Mapping[str, Tensor], path: str = "") -> Iterator[tuple[str, str]]:
    """Path -> what stands there, in words."""
    if isinstance(value, list):
        value = {str(place): inner for place, inner in enumerate(value)}
    if not isinstance(value, dict):
        word = "a number" if isinstance(value, int | float) else f"a {type(value).__name__}"
        yield path, f"number {value}" if PLACES in path.split(".") else word
    elif set(value) == {TENSOR}:
        yield path, _kind(tensors[str(value[TENSOR])])
    elif set(value) == {INTEGER_KEYS}:
        yield from _leaves(value[INTEGER_KEYS], tensors, path)
    else:
        for key, inner in value.items():
            yield from _leaves(inner, tensors, f"{path}.{key}" if path else key)
