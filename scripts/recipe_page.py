"""Write docs/recipe-reference.md: every key of a recipe, from the schema.

    python scripts/recipe_page.py [--check]

`--check` writes nothing and exits 1 when the page is out of date.
"""

from __future__ import annotations

import inspect
import sys
from pathlib import Path
from typing import get_args, get_origin

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "scripts")]

from pydantic.fields import FieldInfo  # noqa: E402

from generated import plain, table, write_or_check  # noqa: E402
from lrft.recipe.fields import Slot, slot_of  # noqa: E402
from lrft.recipe.schema import Recipe  # noqa: E402
from lrft.registry.config import OneOrMore, Section  # noqa: E402
from lrft.registry.registry import Registry  # noqa: E402
from methods_pages import EVERY, chooses, page_name, setting  # noqa: E402

PAGE = ROOT / "docs" / "recipe-reference.md"
HEAD = """# Recipe reference

Every key of a recipe, written from the schema by `python scripts/recipe_page.py`. `lrft recipes schema` prints the
same as a JSON schema for an editor, `lrft recipes show NAME` a recipe with every default spelled out. [Writing
recipes](recipes.md) says how files inherit and how keys are overridden.

A key that is not on this page is an error, with file, line and what was probably meant. Keys marked *chosen* name one
method; `key: NAME` is short for `key: {method: NAME}`, and the settings of each method are on the page that is
linked.

Beside these keys, `extends: OTHER.yaml` names the recipe that this one is laid over.
"""
HEADS = ("key", "value", "default", "what it does")


def page() -> str:
    """The whole page: the chosen keys first, then a table a section."""
    chosen = [
        (f"`{key}`", f"chosen: [{chooses(key)}](methods/{page_name(key)})", _default(field))
        for key, field in Recipe.model_fields.items()
        if key in EVERY
    ]
    lines = [HEAD, "## Chosen methods", "", table(("key", "what it chooses", "default"), chosen), ""]
    for key, field in Recipe.model_fields.items():
        section = slot_of(field).section(None)
        if key not in EVERY and section is not None:
            lines += [f"## {key}", "", plain(inspect.cleandoc(section.__doc__ or "")), ""]
            lines += [table(HEADS, rows(key, section)), ""]
    return "\n".join(lines).rstrip() + "\n"


def rows(prefix: str, section: type[Section]) -> list[tuple[str, ...]]:
    """One row a key, sections below with their own keys after them."""
    found: list[tuple[str, ...]] = []
    for name, field in section.model_fields.items():
        key, slot = f"{prefix}.{name}", slot_of(field)
        registry = _registry(slot)
        below = slot.section(None)
        if registry is not None:
            axis = next((one for one, held in EVERY.items() if held is registry), "")
            value = f"chosen: [{chooses(axis)}](methods/{page_name(axis)})"
            found.append((f"`{key}`", value, setting(name, field)[2], plain(field.description or "")))
        elif below is not None:
            several = next((item for item in slot.metadata if isinstance(item, OneOrMore)), None)
            kind = "a source, below, or a list of them" if several else "a section, below"
            found.append((f"`{key}`", kind, setting(name, field)[2], plain(field.description or "")))
            found += rows(key, below)
            if several is not None:
                found += [
                    row
                    for row in rows(f"{key}.N", several.item)
                    if row[0][:-1].split(".")[-1] not in below.model_fields
                ]
        else:
            _, *rest = setting(name, field)
            found.append((f"`{key}`", *rest))
    return found


def _registry(slot: Slot) -> Registry | None:
    """The registry that a key, or every entry of a list, chooses from."""
    if slot.registry is None and get_origin(slot.annotation) is list:
        return Slot.of(get_args(slot.annotation)[0]).registry
    return slot.registry


def _default(field: FieldInfo) -> str:
    value = field.get_default(call_default_factory=True)
    value = getattr(value, "method", value)
    return "required" if field.is_required() else f"`{'null' if value is None else value}`"


def fresh() -> dict[Path, str]:
    """Every file that this script writes."""
    return {PAGE: page()}


if __name__ == "__main__":
    raise SystemExit(write_or_check(fresh(), sys.argv[1:]))
