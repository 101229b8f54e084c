"""The recipes that come with lrft, found by bare name."""

from __future__ import annotations

from pathlib import Path

import lrft
from lrft.core.errors import RecipeError, UsageError
from lrft.core.names import did_you_mean


def folder() -> Path:
    """Where the packaged recipes are: inside the installed package, or beside it in a source checkout."""
    package = Path(lrft.__file__).parent
    inside = package / "recipes"
    return inside if inside.is_dir() else package.parent / "recipes"


def names() -> list[str]:
    """Every packaged recipe, by path without suffix: `quickstart`, `smoke/lora`."""
    root = folder()
    return sorted(path.relative_to(root).with_suffix("").as_posix() for path in root.rglob("*.yaml"))


def find(name: str) -> Path:
    """The file of a packaged recipe, named with or without `.yaml`.

    Raises:
        RecipeError: no packaged recipe has that name; the message suggests near ones.
    """
    stem = name.removesuffix(".yaml")
    known = names()
    if stem not in known:
        raise RecipeError(f"no recipe named {name!r}: neither a file nor a packaged recipe{did_you_mean(stem, known)}")
    return folder() / f"{stem}.yaml"


def copy(name: str, destination: Path) -> Path:
    """Copy a packaged recipe to a file, or into an existing folder, and return the file written.

    Raises:
        RecipeError: no such recipe.
        UsageError: the file exists already or its folder does not.
    """
    source = find(name)
    target = destination / source.name if destination.is_dir() else destination
    if not target.parent.is_dir():
        raise UsageError(f"{target.parent}: no such folder; make it first")
    try:
        with target.open("x", encoding="utf-8") as file:
            file.write(source.read_text(encoding="utf-8"))
    except FileExistsError as error:
        raise UsageError(f"{target} exists already; choose another name or remove it") from error
    return target
