"""A recipe being put together: values that know where they were written."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeAlias

from lrft.registry.errors import Problem
from lrft.registry.json import Json
from lrft.registry.secrets import masked

Keys = tuple[str | int, ...]
Scalar: TypeAlias = str | int | float | bool | None


@dataclass(frozen=True)
class Place:
    """Where a value was written: a file and line, or the command line.

    `folder` is what relative paths written there are relative to.
    """

    file: str = ""
    line: int | None = None
    folder: Path | None = None

    def __str__(self) -> str:
        return f"{self.file}:{self.line}" if self.line else self.file

    def problem(self, key: str, message: str) -> Problem:
        """A problem found here."""
        return Problem(key, message, self.file, self.line)


@dataclass(frozen=True)
class Node:
    """A value with its place: a scalar, a list of nodes, or a dict of nodes.

    `replaces`: in a merge, take the place of the whole older value instead of being merged into it.
    """

    value: dict[str, Node] | list[Node] | Scalar
    place: Place
    replaces: bool = False

    def plain(self) -> Json:
        """The value without places."""
        if isinstance(self.value, dict):
            return {key: node.plain() for key, node in self.value.items()}
        if isinstance(self.value, list):
            return [node.plain() for node in self.value]
        return self.value

    def get(self, *keys: str | int) -> Node | None:
        """The node below, or None when nothing is written there."""
        node: Node | None = self
        for key in keys:
            inside = node.value if node is not None else None
            if isinstance(inside, dict):
                node = inside.get(str(key))
            elif isinstance(inside, list) and isinstance(key, int) and key < len(inside):
                node = inside[key]
            else:
                return None
        return node

    def nearest(self, *keys: str | int) -> Place:
        """The place of the value, or of the innermost section around it that is written."""
        for length in range(len(keys), 0, -1):
            node = self.get(*keys[:length])
            if node is not None:
                return node.place
        return replace(self.place, line=None)

    def with_value(self, keys: Keys, node: Node | None) -> Node:
        """A copy of the tree with `node` at `keys`, sections made as needed; None deletes."""
        key, rest = keys[0], keys[1:]
        name = str(key)
        if isinstance(self.value, list) and isinstance(key, int):
            assert node is not None, "list entries are never deleted"
            changed = self.value[key].with_value(rest, node) if rest else node
            return replace(self, value=[*self.value[:key], changed, *self.value[key + 1 :]])
        inside = dict(self.value) if isinstance(self.value, dict) else {}
        if rest:
            below = inside.get(name, Node({}, node.place if node else self.place))
            inside[name] = below.with_value(rest, node)
        elif node is None:
            inside.pop(name, None)
        else:
            inside[name] = node
        return replace(self, value=inside)


def shown(value: object) -> str:
    """A value as a message shows it: one short line, YAML's words for YAML's constants."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, dict):
        return "a section"
    text = masked(repr(value))  # before it is cut: half a secret is not known for one
    if isinstance(value, list):
        return text if len(text) <= 40 else "a list"
    return text if len(text) <= 60 else f"{text[:56]}...{text[-1]}"


def dotted(keys: Iterable[str | int]) -> str:
    """`adapter.rank`; odd or endless keys are quoted and cut, so that a message stays one line."""
    words = [str(key) for key in keys]
    return ".".join(
        word if word and word.isprintable() and len(word) <= 60 else shown(word) for word in words
    )
