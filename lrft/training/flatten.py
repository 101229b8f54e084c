"""Nested state as tensors plus plain JSON, so that no pickle is ever written."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from lrft.registry.json import Json, to_list, to_section

TENSOR = "__tensor__"
INTEGER_KEYS = "__integer_keys__"
TUPLE = "__tuple__"


def flatten(state: object) -> tuple[dict[str, Tensor], Json]:
    """Nested dicts, lists, tuples, tensors and scalars -> (path -> tensor, JSON values that name the paths).

    Raises:
        TypeError: a value is none of these.
    """
    tensors: dict[str, Tensor] = {}

    def visit(value: object, path: str) -> Json:
        if isinstance(value, Tensor):
            tensors[path] = value
            return {TENSOR: path}
        if isinstance(value, dict):
            plain = {
                str(key): visit(inner, f"{path}.{key}" if path else str(key)) for key, inner in value.items()
            }
            return {INTEGER_KEYS: plain} if any(isinstance(key, int) for key in value) else plain
        if isinstance(value, list | tuple):
            items = [visit(inner, f"{path}.{i}" if path else str(i)) for i, inner in enumerate(value)]
            return {TUPLE: items} if isinstance(value, tuple) else items
        if value is None or isinstance(value, bool | int | float | str):
            return value
        raise TypeError(
            f"{path}: a {type(value).__name__} cannot be kept in a checkpoint; use tensors and plain values"
        )

    return tensors, visit(state, "")


def unflatten(tensors: dict[str, Tensor], values: Json) -> Any:
    """The inverse of `flatten`."""
    if isinstance(values, list):
        return [unflatten(tensors, value) for value in values]
    if not isinstance(values, dict):
        return values
    if set(values) == {TENSOR}:
        return tensors[str(values[TENSOR])]
    if set(values) == {TUPLE}:
        return tuple(unflatten(tensors, value) for value in to_list(values[TUPLE]))
    if set(values) == {INTEGER_KEYS}:
        return {
            int(key): unflatten(tensors, value) for key, value in to_section(values[INTEGER_KEYS]).items()
        }
    return {key: unflatten(tensors, value) for key, value in values.items()}
