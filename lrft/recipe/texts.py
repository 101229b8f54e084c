"""Files whose text a recipe keeps, so that a run goes by what it began with: a chat template, and tools."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from lrft.recipe.meant import meanings
from lrft.recipe.tree import Keys, Node, Place, dotted, shown
from lrft.registry.did_you_mean import did_you_mean
from lrft.registry.errors import Problem
from lrft.registry.json import parse_text
from lrft.registry.templates import is_jinja, template_names


def with_texts(root: Node) -> tuple[Node, list[Problem]]:
    """The tree with the text of every file that `data.template` and `tools` of a format name, and what is no such file.

    A named template stays a name, and a text that stands there already, as in the recipe of a run, stays too.
    """
    problems: list[Problem] = []
    for keys in _keys(root):
        node = root.get(*keys)
        if node is None or not isinstance(node.value, str) or not node.value:
            continue
        try:
            text = (_tools if keys[-1] == "tools" else _template)(node.value, node.place)
            root = root.with_value(keys, replace(node, value=text))
        except _Unusable as error:
            problems.append(node.place.problem(dotted(keys), str(error)))
    return root, problems


def _keys(root: Node) -> Iterator[Keys]:
    yield ("data", "template")
    yield ("data", "format", "tools")
    for split in ("train", "eval"):
        sources = root.get("data", split)
        if sources is not None and isinstance(sources.value, list):
            yield from (("data", split, index, "format", "tools") for index in range(len(sources.value)))
    tasks = root.get("eval", "tasks")
    if tasks is not None and isinstance(tasks.value, list):
        yield from (("eval", "tasks", index, "format", "tools") for index in range(len(tasks.value)))


class _Unusable(Exception):
    pass


def _template(written: str, place: Place) -> str:
    if is_jinja(written) or written in template_names():
        return written
    found = _read(written, place)
    if found is None:
        formats = [meaning.placed() for meaning in meanings(written) if meaning.key == "data.format"]
        meant = f"; write {formats[0]}" if formats else did_you_mean(written, template_names())
        raise _Unusable(f"{shown(written)} is neither a template nor a file{meant}")
    if not is_jinja(found):
        raise _Unusable(f"{shown(written)} is no Jinja: it has neither {{{{ nor {{%")
    return found


def _tools(written: str, place: Place) -> str:
    text = written if written.lstrip().startswith("[") else _read(written, place)
    if text is None:
        raise _Unusable(f"there is no file {shown(written)}; name one that holds a JSON list of tools")
    try:
        tools = parse_text(text)
    except ValueError as error:
        raise _Unusable(f"{shown(written)} is not valid JSON ({error})") from None
    if not isinstance(tools, list) or not tools or not all(isinstance(tool, dict) for tool in tools):
        raise _Unusable(f'{shown(written)} must be a JSON list of tools, such as [{{"name": "...", ...}}]')
    return json.dumps(tools, ensure_ascii=False)


def _read(written: str, place: Place) -> str | None:
    """The text of the file that is meant: beside the recipe, else in the working directory; None without one."""
    path = Path(os.path.expandvars(written)).expanduser()
    beside = [] if place.folder is None else [place.folder / path]
    found = next((file for file in (*beside, path) if file.is_file()), None)
    try:
        return None if found is None else found.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:  # whose own text has the path, variables replaced
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8"
        raise _Unusable(f"{shown(written)} cannot be read ({reason})") from None
