"""Validation with its errors as sentences: where, what was wrong with the value, what would work."""

from __future__ import annotations

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from lrft.recipe.fields import Slot, known_keys, slot_at, value_at
from lrft.recipe.foreign import other_value
from lrft.recipe.meant import method_meant
from lrft.recipe.schema import Recipe
from lrft.recipe.tree import Node, dotted, shown
from lrft.recipe.unknown import unknown_key
from lrft.registry.did_you_mean import did_you_mean, listed
from lrft.registry.errors import Problem
from lrft.registry.json import Json

Loc = tuple[str | int, ...]
MOST_SUGGESTIONS = 200  # a file with more unknown keys is not a recipe, and each suggestion takes a moment


def validated(root: Node) -> tuple[Recipe | None, list[Problem], set[str]]:
    """The recipe, or None, everything wrong with it, and the keys that its unknown keys were meant to be."""
    plain = root.plain()
    try:
        return Recipe.model_validate(plain), [], set()
    except ValidationError as error:
        explanation = _Explanation(root, plain)
        return None, explanation.problems(error.errors(include_url=True)), explanation.suggested


class _Explanation:
    def __init__(self, root: Node, plain: Json) -> None:
        self.root = root
        self.plain = plain
        self.every = [".".join(keys) for keys in known_keys(plain)]
        self.unknown = 0
        # Keys that an unknown key was probably meant to be: they are not missing as well.
        self.suggested: set[str] = set()

    def problems(self, errors: list[ErrorDetails]) -> list[Problem]:
        found: dict[str, Problem] = {}
        for error in sorted(errors, key=lambda error: error["type"] != "extra_forbidden"):
            for loc, message in self._sentences(error):
                problem = self.root.nearest(*loc).problem(dotted(loc), message)
                found.setdefault(problem.key, problem)
        return list(found.values())

    def _sentences(self, error: ErrorDetails) -> list[tuple[Loc, str]]:
        loc = self._written(error["loc"])
        if error["type"] == "extra_forbidden":
            return [self._unknown_key(error["loc"])]
        if error["type"] == "missing":
            return self._missing(error["loc"])
        if error["type"] == "unknown_method":
            return [((*loc, "method"), self._unknown_method(loc, error["msg"]))]
        if error["type"] == "choice":
            return self._not_a_choice(loc, error["msg"])
        if error["type"] in ("value_error", "assertion_error"):
            return [(loc, " ".join(str(error["ctx"]["error"]).split()))]
        if "url" not in error:  # raised by a method's own check, worded there
            return [(loc, error["msg"])]
        return [(loc, self._wrong(loc))]

    def _unknown_key(self, loc: Loc) -> tuple[Loc, str]:
        self.unknown += 1
        if self.unknown > MOST_SUGGESTIONS:
            return loc, "unknown key"
        message, meant = unknown_key(loc, self.plain, self.every)
        self.suggested.update(meant)
        return loc, message

    def _unknown_method(self, loc: Loc, message: str) -> str:
        slot, value = slot_at(loc, self.plain), value_at(loc, self.plain)
        name = value.get("method") if isinstance(value, dict) else value
        if slot is None or slot.registry is None or not isinstance(name, str):
            return message
        return f"unknown {slot.registry.kind} {shown(name)}{method_meant(name, slot.registry)}"

    def _written(self, loc: Loc) -> Loc:
        """The part of pydantic's location that is a key; what follows names the branch of a union."""
        for length in range(1, len(loc) + 1):
            if self.root.get(*loc[:length]) is None:
                return loc[: length - 1]
        return loc

    def _wrong(self, loc: Loc) -> str:
        slot, value = slot_at(loc, self.plain), value_at(loc, self.plain)
        if slot is None:
            return f"cannot be {shown(value)}"
        if value is None and slot.section(None) is not None:
            return "is empty; write its keys indented below it, or remove the line"
        near = did_you_mean(value, slot.literals()) if isinstance(value, str) and slot.literals() else ""
        hint = near if near.startswith("; did") else ""
        if isinstance(value, str) and slot.literals():
            hint = other_value(dotted(loc), value, slot.literals()) or hint
        hint = hint or _as_section(loc, slot, value)
        return f"must be {slot.words()}, not {shown(value)}{hint}"

    def _not_a_choice(self, loc: Loc, message: str) -> list[tuple[Loc, str]]:
        slot, value = slot_at(loc, self.plain), value_at(loc, self.plain)
        if slot is None or slot.registry is None:
            return [(loc, message)]
        names = listed(slot.registry.names(), "or")
        if not isinstance(value, dict):
            return [(loc, f"must be {slot.words()}, not {shown(value)}{_spelt_out(value, slot)}")]
        if "method" in value:
            wrong = value["method"]
            return [((*loc, "method"), f"must be {names}, not {shown(wrong)}{_spelt_out(wrong, slot)}")]
        methods = [slot.registry.declared(name).config.model_fields for name in slot.registry.names()]
        strange = [key for key in value if not any(key in fields for fields in methods)]
        found = [self._unknown_key((*loc, key)) for key in strange]
        return [*found, ((*loc, "method"), f"is required; write {names}")]

    def _missing(self, loc: Loc) -> list[tuple[Loc, str]]:
        """A missing section of the recipe is reported by the keys it must hold."""
        slot = slot_at(loc, self.plain)
        if any(f"{dotted(loc)}.".startswith(f"{key}.") for key in self.suggested):
            return []
        if slot is None:
            return [(loc, "is required")]
        required = slot.required()
        if len(loc) == 1 and required:
            return [found for name in required for found in self._missing((*loc, name))]
        if required:
            slot = slot.below(required[0], None) or slot
        what = (slot.field.description if slot.field else None) or slot.words()
        names = f"; write {listed(slot.registry.names(), 'or')}" if slot.registry is not None else ""
        return [(loc, f"is required: {what}{names}")]


def _spelt_out(value: Json, slot: Slot) -> str:
    """What a number or a boolean stands for where a method is named: `quantization: 4`."""
    if slot.registry is None or not isinstance(value, int):
        return ""
    said = method_meant(str(value).lower(), slot.registry)
    return said if said.startswith("; write") else ""


def _as_section(loc: Loc, slot: Slot, value: Json) -> str:
    """How to write a section that was given as text, where it needs one key only."""
    required = slot.required()
    if not isinstance(value, str) or len(required) != 1:
        return ""
    return f"; write {dotted(loc)}: {{{required[0]}: {shown(value)}}}"
