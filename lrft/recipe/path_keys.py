"""Which keys of a recipe hold paths: of its model, its adapters, its rows, and of the settings of its methods."""

from __future__ import annotations

from collections.abc import Iterator

from lrft.recipe.fields import Slot, slot_of
from lrft.recipe.tree import Keys, Node
from lrft.registry.axes import AXES
from lrft.registry.config import MODEL_OR_RUN, Source

MODEL: Keys = ("model", "name")
TOKENIZER: Keys = ("model", "tokenizer")
ADAPTER: Keys = ("model", "adapter")
STACKED: Keys = ("model", "adapters")


def adapters(root: Node) -> list[Keys]:
    """Keys of the adapters that a training begins with or on top of."""
    node = root.get(*STACKED)
    several = node.value if node is not None and isinstance(node.value, list) else []
    found: list[Keys] = [ADAPTER]
    for place, one in enumerate(several):
        found.append((*STACKED, place) if isinstance(one.value, str) else (*STACKED, place, "adapter"))
    return found


def sources(root: Node) -> list[Keys]:
    """Keys of the sources of the recipe, its methods and its tasks; one may still be a plain string."""
    found: list[Keys] = [*_each(root, "data", "train"), *_each(root, "data", "eval"), *_of_methods(root)]
    tasks = root.get("eval", "tasks")
    if tasks is not None and isinstance(tasks.value, list):
        found += [("eval", "tasks", index, "data") for index in range(len(tasks.value))]
    return [
        keys if isinstance(getattr(root.get(*keys), "value", None), str) else (*keys, "source")
        for keys in found
    ]


def _each(root: Node, *keys: str) -> list[Keys]:
    """Keys of every entry of a list, or the keys themselves where there is none."""
    node = root.get(*keys)
    several = node is not None and isinstance(node.value, list)
    return [(*keys, place) for place in range(len(node.value))] if several else [keys]  # type: ignore[union-attr,arg-type]


def other_models(root: Node) -> list[Keys]:
    """Keys of the settings of the chosen methods that name another model."""
    return [keys for keys, slot in _settings(root) if MODEL_OR_RUN in slot.metadata]


def _of_methods(root: Node) -> list[Keys]:
    """Keys of the settings of the chosen methods that are sources of rows."""
    return [keys for keys, slot in _settings(root) if slot.section(None) is Source]


def _settings(root: Node) -> Iterator[tuple[Keys, Slot]]:
    """Keys of the settings of the chosen methods, and what may stand there."""
    for axis, registry in AXES.items():
        method = root.get(axis, "method")
        if method is not None and method.value in registry.names():
            fields = registry.declared(method.value).config.model_fields
            yield from (((axis, name), slot_of(field)) for name, field in fields.items())
