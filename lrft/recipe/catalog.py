"""The registered methods as a user reads them: what exists, what each one is, what it can be set to."""

from __future__ import annotations

import inspect
from typing import TypedDict

from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined, to_jsonable_python

from lrft.recipe.fields import slot_of
from lrft.recipe.foreign_values import each_word
from lrft.recipe.meant import CATALOG as OF_RECIPES
from lrft.recipe.meant import meanings
from lrft.registry.axes import (
    COMBINATIONS,
    DATA_SELECTIONS,
    GENERATORS,
    REWARDS,
    SEARCHES,
    TRANSFER_ESTIMATES,
)
from lrft.registry.did_you_mean import did_you_mean, squeezed
from lrft.registry.errors import UsageError
from lrft.registry.json import Json
from lrft.registry.registry import Declaration, Registry
from lrft.registry.traits import TRAITS

# A `--method` of `lrft search`, `lrft combine`, `lrft data select`, `lrft data rank` or `lrft generate-adapter` chooses
# these, and no recipe does; rewards stand in the section of an objective.
CATALOG: dict[str, Registry] = {
    **OF_RECIPES,
    "objective.rewards": REWARDS,
    "search": SEARCHES,
    "data_selection": DATA_SELECTIONS,
    "transfer": TRANSFER_ESTIMATES,
    "combine": COMBINATIONS,
    "generate": GENERATORS,
}


class SettingRecord(TypedDict):
    """One setting of a method."""

    name: str
    type: str
    required: bool
    default: Json
    description: str


class MethodRecord(TypedDict):
    """What is known of a method."""

    name: str
    axis: str
    summary: str
    doc: str
    settings: list[SettingRecord]
    provides: list[str]
    requires: list[str]


class MethodsRecord(MethodRecord):
    """A method, and those of other axes that bear its name."""

    also: list[MethodRecord]


def methods(axis: str | None = None) -> list[tuple[str, Declaration]]:
    """(axis, declaration) of every method, or of one axis.

    Raises:
        UsageError: no axis of that name.
    """
    if axis is not None and axis not in CATALOG:
        raise UsageError(f"unknown axis {axis!r}{did_you_mean(axis, CATALOG)}")
    axes = [axis] if axis is not None else list(CATALOG)
    return [(key, CATALOG[key].declared(name)) for key in axes for name in CATALOG[key].names()]


def called(registry: Registry, word: str) -> str | None:
    """The method of a `--method` that others call by this word: its aliases are no lines of a recipe, but an option."""
    for name in registry.names():
        if squeezed(word) in map(squeezed, each_word(registry.declared(name).aliases)):
            return name
    return None


def table(axis: str | None = None) -> str:
    """Aligned lines of axis, name and summary."""
    rows = [(key, declared.name, declared.summary) for key, declared in methods(axis)]
    widths = [max((len(row[column]) for row in rows), default=0) for column in (0, 1)]
    return "\n".join(f"{key:{widths[0]}}  {name:{widths[1]}}  {summary}" for key, name, summary in rows)


def describe(name: str) -> str:
    """Docstring, settings and traits of the method called `name`, of each axis that has one.

    Raises:
        UsageError: no method of that name.
    """
    return "\n\n".join(_card(axis, declared) for axis, declared in _called(name))


def record(name: str) -> MethodsRecord:
    """What `describe` says, as plain values; what other axes know under the same name is in `also`.

    Raises:
        UsageError: no method of that name.
    """
    first, *others = [_record(axis, declared) for axis, declared in _called(name)]
    return {**first, "also": others}


def _called(name: str) -> list[tuple[str, Declaration]]:
    found = [(axis, declared) for axis, declared in methods() if declared.name == name]
    if not found:
        other = " or ".join(meaning.elsewhere() for meaning in meanings(name))
        if not other and (search := called(SEARCHES, name)):
            other = f"a search: write lrft search --method {search}"
        hint = f"; it is {other}" if other else did_you_mean(name, {d.name for _, d in methods()})
        raise UsageError(f"unknown method {name!r}{hint}")
    return found


def _record(axis: str, declared: Declaration) -> MethodRecord:
    return {
        "name": declared.name,
        "axis": axis,
        "summary": declared.summary,
        "doc": inspect.cleandoc(declared.doc),
        "settings": [_setting(key, field) for key, field in _chosen(declared)],
        "provides": sorted(declared.provides),
        "requires": sorted(declared.requires),
    }


def _setting(name: str, field: FieldInfo) -> SettingRecord:
    """A setting: what may stand there in words, and its default where it need not be given."""
    required = field.is_required()
    return {
        "name": name,
        "type": slot_of(field).words(),
        "required": required,
        "default": None if required else to_jsonable_python(field.get_default(call_default_factory=True)),
        "description": field.description or "",
    }


def _card(axis: str, declared: Declaration) -> str:
    lines = [f"{axis}: {declared.name}", "", inspect.cleandoc(declared.doc)]
    settings = _settings(declared)
    if settings:
        lines += ["", "settings", *settings]
    for word, traits in (("provides", declared.provides), ("requires", declared.requires)):
        lines += ["", word, *(f"  {trait}: {TRAITS.get(trait, '')}".rstrip(": ") for trait in sorted(traits))]
        if not traits:
            lines.append("  nothing")
    return "\n".join(lines)


def _settings(declared: Declaration) -> list[str]:
    lines = []
    for name, field in _chosen(declared):
        value = field.get_default(call_default_factory=True)
        default = "required" if field.is_required() else _default(value)
        what = f"  {field.description}" if field.description else ""
        lines.append(f"  {name}: {default}  ({slot_of(field).words()}){what}")
    return lines


def _chosen(declared: Declaration) -> list[tuple[str, FieldInfo]]:
    """The settings of a method, without its name."""
    return [(name, field) for name, field in declared.config.model_fields.items() if name != "method"]


def _default(value: object) -> str:
    if value is None or value is PydanticUndefined:
        return "null"
    return str(value).lower() if isinstance(value, bool) else str(value)
