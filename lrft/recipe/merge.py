"""How layers of a recipe combine: short forms spelled out, later layers win key by key, overrides on top."""

from __future__ import annotations

from dataclasses import replace

from lrft.recipe.document import MAX_DEPTH, parse
from lrft.recipe.tree import Node, Place, dotted, shown
from lrft.registry.axes import AXES
from lrft.registry.did_you_mean import did_you_mean
from lrft.registry.errors import Problem, RecipeError
from lrft.registry.source import names_files

COMMAND_LINE = Place("command line")
OF_ONE_SOURCE = ("name", "split", "revision", "stream", "row")
METHOD_SECTIONS = (*AXES, "schedule")


def spelled_out(root: Node) -> Node:
    """A layer with its short forms written in full, so that layers merge key by key.

    A section written as the name of a method is `{method: NAME}`, and keeps what an older layer says of it;
    `data: PATH` is the source of both splits, or of the training rows where it is a file; a source or format written
    as a string replaces the older one.
    """
    for section in METHOD_SECTIONS:
        root = _wrap(root, section, inner="method")
    root = _wrap(root, "trainable", inner="weights")
    data = root.get("data")
    if data is not None and isinstance(data.value, str):
        eval_rows = replace(data, value=None) if names_files(data.value) else data
        root = root.with_value(("data",), replace(data, value={"train": data, "eval": eval_rows}))
    for key, inner in (("train", "source"), ("eval", "source"), ("format", "method")):
        root = _wrap(root, "data", key, inner=inner, replaces=True)
    return root


def merge(older: Node, newer: Node) -> Node:
    """The newer layer over the older one: sections merge key by key, anything else is replaced."""
    if newer.replaces or not isinstance(older.value, dict) or not isinstance(newer.value, dict):
        return newer
    both = dict(older.value)
    if "source" in newer.value:
        # Which configuration, split or commit was meant belonged to the source that is replaced.
        both = {k: node for k, node in both.items() if k not in OF_ONE_SOURCE or node.place == COMMAND_LINE}
    for key, node in newer.value.items():
        keeps = key in both and not _other_format(key, both[key], node)
        both[key] = merge(_without_foreign_settings(key, both[key], node), node) if keeps else node
    return replace(older if newer.place.line is None else newer, value=both)


def override(root: Node, text: str) -> tuple[Node, list[Problem]]:
    """The tree after one override: `key.sub=value` sets (the value is YAML), `~key.sub` deletes.

    Raises:
        RecipeError: the override is malformed, or deletes what is not there.
    """
    if text.startswith("~"):
        return _delete(root, _keys(text[1:], text)), []
    key, equals, value_text = text.partition("=")
    if not equals:
        message = f"{shown(text)} is not an override; write key.sub=value to set, or ~key.sub to delete"
        raise RecipeError(COMMAND_LINE.problem("", message))
    keys = _keys(key, text)
    if keys[0] == "extends":
        message = "is read from files only; write it in the recipe, or give the other recipe's name"
        raise RecipeError(COMMAND_LINE.problem("extends", message))
    for length in range(1, len(keys)):
        section = root.get(*keys[:length])
        if section is not None and isinstance(section.value, list):
            whole = dotted(keys[:length])
            message = f"{whole} is a list, which is set as a whole; write {whole}=[...]"
            raise RecipeError(COMMAND_LINE.problem(dotted(keys), message))
    value, problems = parse(value_text, COMMAND_LINE, dotted(keys))
    layer = Node({}, COMMAND_LINE).with_value(keys, value)
    return merge(root, spelled_out(layer)), problems


def is_override(argument: str) -> bool:
    """Whether a command-line argument is an override rather than a recipe."""
    if argument.startswith("~"):
        return not argument.startswith("~/")
    key, equals, _ = argument.partition("=")
    return bool(equals) and "/" not in key


def _wrap(root: Node, *keys: str, inner: str, replaces: bool = False) -> Node:
    node = root.get(*keys)
    if node is None or not isinstance(node.value, str | list):
        return root
    if isinstance(node.value, list) and inner != "weights":
        return root
    return root.with_value(keys, Node({inner: Node(node.value, node.place)}, node.place, replaces))


def _other_format(key: str, older: Node, newer: Node) -> bool:
    """A format's settings mean nothing to another format, unlike an adapter's rank to another adapter."""
    methods = [node.get("method") for node in (older, newer)]
    return key == "format" and None not in methods and methods[0].value != methods[1].value  # type: ignore[union-attr]


def _without_foreign_settings(key: str, older: Node, newer: Node) -> Node:
    """An older layer's section without the settings that another method, chosen by the newer one, does not have.

    What the two share, a rank say, is kept. What the command line itself said stays, and is then refused by name.
    """
    if key == "data":
        return _without_other_held_out_rows(older, newer)
    method = newer.get("method")
    if key not in AXES or method is None or not isinstance(older.value, dict):
        return older
    if method.value not in AXES[key].names():
        return older
    known = AXES[key].declared(method.value).config.model_fields
    kept = {k: n for k, n in older.value.items() if k in known or n.place == COMMAND_LINE}
    return replace(older, value=kept)


def _keys(key: str, text: str) -> tuple[str, ...]:
    keys = tuple(key.split("."))
    if len(keys) > MAX_DEPTH or not all(part.isprintable() and part.strip() == part != "" for part in keys):
        message = f"{shown(text)} has no usable key; write keys as section.key, such as train.max_steps=100"
        raise RecipeError(COMMAND_LINE.problem("", message))
    return keys


def _delete(root: Node, keys: tuple[str, ...]) -> Node:
    for length in range(1, len(keys) + 1):
        if root.get(*keys[:length]) is None:
            section = root.get(*keys[: length - 1])
            written = section.value if section is not None and isinstance(section.value, dict) else {}
            near = did_you_mean(keys[length - 1], written)
            message = f"nothing to delete, the recipe does not write this key{near}"
            raise RecipeError(COMMAND_LINE.problem(dotted(keys), message))
    return root.with_value(keys, None)


def _without_other_held_out_rows(older: Node, newer: Node) -> Node:
    """`data.eval` of an older layer gives way to `data.split` of the newer one, and the other way round."""
    for chosen, other in (("split", "eval"), ("eval", "split")):
        said, held = newer.get(chosen), older.get(other)
        given = said is not None and said.value is not None and newer.get(other) is None
        if given and held is not None and held.place != COMMAND_LINE:
            older = older.with_value((other,), None)
    return older
