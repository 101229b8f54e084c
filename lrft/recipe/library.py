"""The recipes that come with lrft, found by bare name."""

from __future__ import annotations

import os
from pathlib import Path, PurePath, PurePosixPath

import lrft
from lrft.files.write import write_new_file
from lrft.recipe.document import parse, read_text
from lrft.recipe.path_keys import MODEL, TOKENIZER, sources
from lrft.recipe.tree import Node, Place, shown
from lrft.registry.did_you_mean import did_you_mean
from lrft.registry.errors import RecipeError, UsageError


def folder() -> Path:
    """Where the packaged recipes are: inside the installed package, or beside it in a source checkout."""
    package = Path(lrft.__file__).parent
    inside = package / "recipes"
    return inside if inside.is_dir() else package.parent / "recipes"


def names() -> list[str]:
    """Every packaged recipe, by path without suffix: `quickstart`, `smoke/none`. Not `_parts.yaml`, not tables."""
    root = folder()
    files = (path.relative_to(root) for path in root.rglob("*.yaml"))
    return sorted(path.with_suffix("").as_posix() for path in files if _is_recipe(path))


def has(stem: str) -> bool:
    """Whether `names` lists this one, without reading every folder."""
    path = PurePosixPath(stem)
    plain = str(path) == stem and not path.is_absolute() and ".." not in path.parts
    return plain and _is_recipe(path) and os.path.isfile(folder() / f"{stem}.yaml")


def _is_recipe(path: PurePath) -> bool:
    """Whether a file at this path below `folder` is a recipe, and neither a part of one nor a table."""
    return not path.name.startswith("_") and "tables" not in path.parts


def find(name: str) -> Path:
    """The file of a packaged recipe, named with or without `.yaml`.

    Raises:
        RecipeError: no packaged recipe has that name; the message suggests near ones.
    """
    stem = name.removesuffix(".yaml")
    if not has(stem):
        near = did_you_mean(stem[:100], names())
        raise RecipeError(f"no recipe {shown(name)}: neither a file nor a packaged recipe{near}")
    return folder() / f"{stem}.yaml"


def copy(name: str, destination: Path) -> Path:
    """Copy a packaged recipe to a file, or into an existing folder, and return the file written.

    Relative paths in it become absolute, so that the copy means the same.

    Raises:
        RecipeError: no such recipe.
        UsageError: the file exists already or its folder does not.
        WriteError: the disk is full or not writable.
    """
    source = find(name)
    target = destination / source.name if destination.is_dir() else destination
    if not target.parent.is_dir():
        raise UsageError(f"{target.parent}: no such folder; make it first")
    try:
        write_new_file(target, _movable(source))
    except FileExistsError as error:
        raise UsageError(f"{target} exists already; choose another name or remove it") from error
    return target


def _movable(source: Path) -> str:
    """The recipe's text, comments kept, with the paths that are relative to its folder made absolute."""
    text = read_text(source)
    root, _ = parse(text, Place(str(source), 1, source.parent))
    lines = text.splitlines(keepends=True)
    written = [root.get("extends"), *(root.get(*keys) for keys in (MODEL, TOKENIZER, *sources(root)))]
    for node in filter(None, written):
        path = source.parent / str(node.value)
        if isinstance(node, Node) and node.value and node.place.line is not None and path.exists():
            line = lines[node.place.line - 1]
            lines[node.place.line - 1] = line.replace(str(node.value), str(path.resolve()), 1)
    return "".join(lines)
