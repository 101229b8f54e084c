"""Reading YAML: a text becomes a tree that knows its lines.

Nothing in the text can run code, and its size, depth and expanded aliases are limited.
"""

from __future__ import annotations

from dataclasses import replace
from functools import lru_cache
from pathlib import Path

import yaml
from yaml.composer import Composer
from yaml.nodes import MappingNode, ScalarNode, SequenceNode
from yaml.parser import Parser
from yaml.reader import Reader, ReaderError
from yaml.resolver import BaseResolver
from yaml.scanner import Scanner

from lrft.recipe.scalars import CORE, CORE_SCALARS, construct
from lrft.recipe.tree import Keys, Node, Place, Scalar, dotted, shown
from lrft.recipe.yaml_mistakes import UNCLOSED, sentence_of
from lrft.registry.errors import Problem, RecipeError

MAX_BYTES = 1_000_000
MAX_DEPTH = 20
MAX_NODES = 10_000


def read_text(path: Path) -> str:
    """The text of a recipe file.

    Raises:
        RecipeError: not a readable, regular UTF-8 file of reasonable size.
    """
    name = str(path)
    try:
        if path.is_dir():
            raise RecipeError(Problem("", "is a folder, not a recipe; give the .yaml file inside it", name))
        if not path.is_file():
            raise RecipeError(
                Problem("", "is not a regular file; write the recipe to a .yaml file first", name)
            )
        with path.open("rb") as file:
            data = file.read(MAX_BYTES + 1)
    except OSError as error:
        raise RecipeError(Problem("", f"cannot be read: {error.strerror or error}", name)) from error
    if len(data) > MAX_BYTES:
        raise RecipeError(
            Problem("", "is larger than 1 MB, so it is not a recipe; recipes are short YAML texts", name)
        )
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        message = f"byte 0x{data[error.start]:02x} is not UTF-8 text; save the recipe as plain UTF-8"
        raise RecipeError(Problem("", message, name, line)) from error


def parse(text: str, place: Place, key: str = "") -> tuple[Node, list[Problem]]:
    """The tree of a YAML text, and the problems that leave the rest usable (duplicate keys, unusable values).

    Args:
        place: where the text comes from; lines are counted when it is a file.
        key: dotted key the text stands at, for an override.

    Raises:
        RecipeError: the text as a whole is not usable YAML.
    """
    try:
        root = _composed(text)
    except yaml.MarkedYAMLError as error:
        unclosed = (error.context or "").startswith(UNCLOSED)
        mark = error.context_mark if unclosed else error.problem_mark or error.context_mark
        line = mark.line + 1 if mark and place.line is not None else None
        raise RecipeError(Problem(key, sentence_of(error), place.file, line)) from error
    except ReaderError as error:
        line = text.count("\n", 0, error.position) + 1 if place.line is not None else None
        message = (
            f"the character U+{error.character:04X} is not allowed in YAML; save the recipe as plain text"
        )
        raise RecipeError(Problem(key, message, place.file, line)) from error
    except (_TooLarge, RecursionError) as error:
        raise RecipeError(Problem(key, str(error) or _TOO_DEEP, place.file)) from error
    except (ValueError, OverflowError) as error:
        message = f"not valid YAML: {shown(str(error))}; check the escapes in double-quoted text"
        raise RecipeError(Problem(key, message, place.file)) from error
    if root is None:
        return Node(None, place), []
    builder = _Builder(place)
    try:
        node = builder.build(root, tuple(key.split(".")) if key else (), place)
    except _TooLarge as error:
        raise RecipeError(Problem(key, str(error), place.file)) from error
    return node, builder.problems


class _TooLarge(Exception):
    pass


_TOO_DEEP = f"is nested more than {MAX_DEPTH} levels deep; a recipe has sections, keys and short lists"
_TOO_MANY = f"holds more than {MAX_NODES} values (aliases counted each time); a recipe is a short text"


class _Loader(Reader, Scanner, Parser, Composer, BaseResolver):
    """Composes nodes only: there is no constructor, hence no tag that could create an object."""

    def __init__(self, text: str) -> None:
        Reader.__init__(self, text)
        Scanner.__init__(self)
        Parser.__init__(self)
        Composer.__init__(self)
        BaseResolver.__init__(self)
        self.count = self.depth = 0

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        self.count += 1
        self.depth += 1
        if self.depth > MAX_DEPTH:
            raise _TooLarge(_TOO_DEEP)
        if self.count > MAX_NODES:
            raise _TooLarge(_TOO_MANY)
        node = super().compose_node(parent, index)
        self.depth -= 1
        return node


@lru_cache(maxsize=256)  # the parents of recipes are read by every child anew
def _composed(text: str) -> yaml.Node | None:
    return _Loader(text).get_single_node()


for _tag, _pattern in CORE_SCALARS.items():
    _Loader.add_implicit_resolver(_tag, _pattern, None)


class _Builder:
    """Nodes of PyYAML -> nodes with places, aliases expanded and counted."""

    def __init__(self, place: Place) -> None:
        self.origin = place
        self.problems: list[Problem] = []
        self.count = 0

    def build(self, node: yaml.Node, keys: Keys, place: Place) -> Node:
        self.count += 1
        if self.count > MAX_NODES:
            raise _TooLarge(_TOO_MANY)
        if len(keys) > MAX_DEPTH:
            raise _TooLarge(_TOO_DEEP)
        if isinstance(node, MappingNode) and node.tag == CORE + "map":
            return self._mapping(node, keys, place)
        if isinstance(node, SequenceNode) and node.tag == CORE + "seq":
            items = [self.build(item, (*keys, str(i)), self._at(item)) for i, item in enumerate(node.value)]
            return Node(items, place)
        if isinstance(node, ScalarNode) and (node.tag in CORE_SCALARS or node.tag == CORE + "str"):
            return Node(self._scalar(node, keys, place), place)
        tag = shown(node.tag.replace(CORE, "!!"))
        self.problems.append(
            place.problem(dotted(keys), f"the tag {tag} is not allowed; write a plain value")
        )
        return Node(None, place)

    def _at(self, node: yaml.Node) -> Place:
        return (
            self.origin if self.origin.line is None else replace(self.origin, line=node.start_mark.line + 1)
        )

    def _mapping(self, node: MappingNode, keys: Keys, place: Place) -> Node:
        found: dict[str, Node] = {}
        for key_node, value_node in node.value:
            at = self._at(key_node)
            if not isinstance(key_node, ScalarNode):
                self.problems.append(
                    at.problem(dotted(keys), "a key must be a word, not a list or a section")
                )
                continue
            key = key_node.value
            path = (*keys, key)
            if key in found:
                first = f" (first on line {found[key].place.line})" if at.line else ""
                self.problems.append(at.problem(dotted(path), f"is written twice{first}; keep one of them"))
            found[key] = self.build(value_node, path, at)
        return Node(found, place)

    def _scalar(self, node: ScalarNode, keys: Keys, place: Place) -> Scalar:
        text = node.value
        try:
            text.encode("utf-8")
            return construct(node.tag, text)
        except UnicodeEncodeError:
            message = "holds half of a character pair (a \\ud800-style escape); write the character itself"
        except ValueError:
            message = f"{shown(text)} is not {node.tag.replace(CORE, '!!')}, or has too many digits"
        self.problems.append(place.problem(dotted(keys), message))
        return None
