"""The schema as a user sees it: what may stand at a key, in plain words, the chosen methods' settings too."""

from __future__ import annotations

import types
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, Literal, Union, get_args, get_origin

from pydantic.fields import FieldInfo

from lrft.recipe.schema import Recipe
from lrft.recipe.sections import DECIDES_ROWS
from lrft.registry.config import Choice, Section
from lrft.registry.did_you_mean import a, listed
from lrft.registry.json import Json
from lrft.registry.registry import Registry


@dataclass(frozen=True)
class Slot:
    """What may stand at one key: a type with its constraints."""

    annotation: object
    metadata: tuple[object, ...] = ()
    field: FieldInfo | None = None

    @staticmethod
    def of(annotation: object, metadata: tuple[object, ...] = (), field: FieldInfo | None = None) -> Slot:
        """The slot of an annotation, `Annotated` unwrapped."""
        if get_origin(annotation) is Annotated:
            inner, *found = get_args(annotation)
            more = [
                one for item in found for one in (item.metadata if isinstance(item, FieldInfo) else [item])
            ]
            return Slot.of(inner, (*more, *metadata), field)
        return Slot(annotation, metadata, field)

    @property
    def registry(self) -> Registry | None:
        """The registry that the slot chooses a method from."""
        for item in self.metadata:
            if isinstance(item, Choice):
                return item.registry
        return None

    def section(self, value: Json) -> type[Section] | None:
        """The class that parses `value` as a section here: for a method, its own `Config`."""
        if self.registry is not None:
            name = value.get("method") if isinstance(value, dict) else value
            if not isinstance(name, str) or name not in self.registry.names():
                return None
            return self.registry.declared(name).config
        if isinstance(self.annotation, type) and issubclass(self.annotation, Section):
            return self.annotation
        return next((found for option in self._options() if (found := option.section(value))), None)

    def below(self, key: str | int, value: Json) -> Slot | None:
        """The slot one key further down, `value` being what is written here."""
        section = self.section(value)
        if section is not None and not isinstance(key, int):
            field = section.model_fields.get(str(key))
            return slot_of(field) if field else None
        arguments = get_args(self.annotation)
        if get_origin(self.annotation) is list and isinstance(key, int):
            return Slot.of(arguments[0])
        if get_origin(self.annotation) is dict:
            return Slot.of(arguments[1])
        return next((found for option in self._options() if (found := option.below(key, value))), None)

    def words(self, many: bool = False) -> str:
        """The allowed values in plain words: `an integer greater than 0`."""
        if self.registry is not None:
            kind, names = self.registry.kind, listed(self.registry.names(), "or")
            if many:
                return f"{kind} names ({names}), or sections with `method` and its settings"
            return f"the name of {a(kind)} ({names}), or a section with `method` and its settings"
        if self._options():
            return ", or ".join(option.words(many) for option in self._options())
        if get_origin(self.annotation) is Literal:
            return f"one of {listed(map(str, get_args(self.annotation)), 'or')}"
        if get_origin(self.annotation) is list:
            return f"a list of {Slot.of(get_args(self.annotation)[0]).words(many=True)}"
        if get_origin(self.annotation) is dict:
            return f"a section whose values are {Slot.of(get_args(self.annotation)[1]).words(many=True)}"
        section = self.section(None)
        if section is not None:
            short = ("texts, or " if many else "text, or ") if hasattr(section, "_from_string") else ""
            what = "sections" if many else "a section"
            return f"{short}{what} with the keys {listed(section.model_fields, 'and')}"
        return _SCALARS.get(self.annotation, ("a value", "values"))[many] + self._limits()

    def required(self) -> list[str]:
        """The keys that a section here cannot do without; none where a method has to be chosen first."""
        section = self.section(None) if self.registry is None else None
        return (
            [name for name, field in section.model_fields.items() if field.is_required()] if section else []
        )

    def literals(self) -> list[str]:
        """The words a literal slot allows."""
        if get_origin(self.annotation) is Literal:
            return [str(value) for value in get_args(self.annotation)]
        return [word for option in self._options() for word in option.literals()]

    def _options(self) -> list[Slot]:
        if get_origin(self.annotation) not in (Union, types.UnionType):
            return []
        nothing_last = sorted(get_args(self.annotation), key=lambda option: option is type(None))
        return [Slot.of(option, self.metadata) for option in nothing_last]

    def _limits(self) -> str:
        if self.annotation not in (int, float, str):
            return ""
        found = []
        for item in self.metadata:
            found += [
                f"{word} {getattr(item, name)}" for name, word in _LIMITS.items() if hasattr(item, name)
            ]
            if pattern := getattr(item, "pattern", None):
                example = f"such as {self.field.default} " if self.field and self.field.default else ""
                found.append(f"{example}(matching {pattern})")
            if getattr(item, "min_length", None):
                found.append("that is not empty")
        return f" {' and '.join(found)}" if found else ""


_SCALARS: dict[object, tuple[str, str]] = {
    int: ("an integer", "integers"),
    float: ("a number", "numbers"),
    str: ("text", "texts"),
    bool: ("true or false", "true or false"),
    type(None): ("null", "null"),
}
_LIMITS = {"gt": "greater than", "ge": "at least", "lt": "less than", "le": "at most"}

ROOT = Slot(Recipe)


def slot_of(field: FieldInfo) -> Slot:
    """The slot of a pydantic field."""
    return Slot.of(field.annotation, tuple(field.metadata), field)


def slot_at(keys: tuple[str | int, ...], plain: Json) -> Slot | None:
    """The slot at a key of the recipe `plain`, as written; None where no key is allowed."""
    slot: Slot | None = ROOT
    for key in keys:
        if slot is None:
            return None
        slot = slot.below(key, plain)
        plain = value_at((key,), plain)
    return slot


def value_at(keys: tuple[str | int, ...], plain: Json) -> Json:
    """What is written at a key, None where nothing is."""
    for key in keys:
        if isinstance(plain, dict):
            plain = plain.get(key)
        elif isinstance(plain, list) and isinstance(key, int) and key < len(plain):
            plain = plain[key]
        else:
            return None
    return plain


def known_keys(plain: Json, slot: Slot = ROOT, prefix: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """Every key the recipe could hold, the chosen methods' settings included, those of lists left out."""
    section = slot.section(plain) or (slot.registry.config if slot.registry is not None else None)
    if section is None:
        return
    for name, field in section.model_fields.items():
        yield (*prefix, name)
        below = slot_of(field)
        value = value_at((name,), plain)
        yield from known_keys(field.default if value is None else value, below, (*prefix, name))


def keys_that_decide_rows(section: type[Section] = Recipe, prefix: str = "") -> Iterator[str]:
    """Dotted keys that arms of a comparison have in common; a section that is marked stands for all below."""
    for name, field in section.model_fields.items():
        slot = slot_of(field)
        below = slot.section(None) if slot.registry is None else None
        if DECIDES_ROWS in slot.metadata:
            yield f"{prefix}{name}"
        elif below is not None:
            yield from keys_that_decide_rows(below, f"{prefix}{name}.")
