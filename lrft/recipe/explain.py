"""Validation with its errors as sentences: where, what was wrong with the value, what would work."""

from __future__ import annotations

from typing import Any

from pydantic import ValidationError

from lrft.core.errors import Problem
from lrft.core.names import did_you_mean
from lrft.recipe.fields import Slot, known_keys, listed, slot_at, value_at
from lrft.recipe.schema import Recipe
from lrft.recipe.tree import Node, dotted, shown
from lrft.recipe.unknown import unknown_key

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
    def __init__(self, root: Node, plain: dict[str, Any]) -> None:
        self.root = root
        self.plain = plain
        self.every = [".".join(keys) for keys in known_keys(plain)]
        self.unknown = 0
        # Keys that an unknown key was probably meant to be: they are not missing as well.
        self.suggested: set[str] = set()

    def problems(self, errors: list[Any]) -> list[Problem]:
        found: dict[str, Problem] = {}
        for error in sorted(errors, key=lambda error: error["type"] != "extra_forbidden"):
            for loc, message in self._sentences(error):
                problem = self.root.nearest(*loc).problem(dotted(loc), message)
                found.setdefault(problem.key, problem)
        return list(found.values())

    def _sentences(self, error: Any) -> list[tuple[Loc, str]]:
        loc = self._written(error["loc"])
        if error["type"] == "extra_forbidden":
            self.unknown += 1
            if self.unknown > MOST_SUGGESTIONS:
                return [(error["loc"], "unknown key")]
            message, meant = unknown_key(error["loc"], self.plain, self.every)
            self.suggested.update(meant)
            return [(error["loc"], message)]
        if error["type"] == "missing":
            return self._missing(error["loc"])
        if error["type"] == "unknown_method":
            return [((*loc, "method"), error["msg"])]
        if error["type"] == "choice":
            return self._not_a_choice(loc, error["msg"])
        if error["type"] in ("value_error", "assertion_error"):
            return [(loc, " ".join(str(error["ctx"]["error"]).split()))]
        if "url" not in error:  # raised by a method's own check, worded there
            return [(loc, error["msg"])]
        return [(loc, self._wrong(loc))]

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
        hint = near if near.startswith("; did") else _as_section(loc, slot, value)
        return f"must be {slot.words()}, not {shown(value)}{hint}"

    def _not_a_choice(self, loc: Loc, message: str) -> list[tuple[Loc, str]]:
        slot, value = slot_at(loc, self.plain), value_at(loc, self.plain)
        if slot is None or slot.registry is None:
            return [(loc, message)]
        names = listed(slot.registry.names(), "or")
        if not isinstance(value, dict):
            return [(loc, f"must be {slot.words()}, not {shown(value)}")]
        if "method" in value:
            return [((*loc, "method"), f"must be {names}, not {shown(value['method'])}")]
        return [((*loc, "method"), f"is required; write {names}")]

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


def _as_section(loc: Loc, slot: Slot, value: Any) -> str:
    """How to write a section that was given as text, where it needs one key only."""
    required = slot.required()
    if not isinstance(value, str) or len(required) != 1:
        return ""
    return f"; write {dotted(loc)}: {{{required[0]}: {shown(value)}}}"
