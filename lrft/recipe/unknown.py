"""What an unknown key was meant to be: misspelt, of another section or method, or another toolkit's word."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass

from lrft.recipe.fields import Slot, slot_at, value_at
from lrft.recipe.foreign import Guess, foreign_key, method_key
from lrft.recipe.schema import Recipe
from lrft.recipe.tree import dotted
from lrft.registry.did_you_mean import listed, near
from lrft.registry.json import Json
from lrft.registry.registry import Registry

SECRET = re.compile(r"(.*_)?(token|password|passwd|secret|api_?key|access_?key|credentials?)", re.IGNORECASE)

# Words for a key of the same section.
SYNONYMS = {
    "name": "method",
    "type": "method",
    "kind": "method",
    "path": "source",
    "file": "source",
    "files": "source",
    "folder": "source",
    "dataset": "source",
    "id": "source",
    "config": "name",
}


@dataclass(frozen=True)
class _Unknown:
    """An unknown key, and what could have stood there."""

    word: str
    value: Json
    prefix: str
    fields: list[str]
    every: list[str]
    registry: Registry | None
    method: str


def unknown_key(keys: tuple[str | int, ...], plain: Json, every: list[str]) -> Guess:
    """What to say of an unknown key, and the keys it may have been meant to be.

    Args:
        plain: the recipe as written.
        every: the dotted keys it could hold.
    """
    section_keys = keys[:-1]
    slot, value = slot_at(section_keys, plain), value_at(section_keys, plain)
    unknown = _Unknown(
        word=str(keys[-1]),
        value=value_at(keys, plain),
        prefix=f"{dotted(section_keys)}." if section_keys else "",
        fields=_fields(slot, value),
        every=every,
        registry=slot.registry if slot is not None else None,
        method=str(value_at(("method",), value) or ""),
    )
    of_method = f" of {unknown.method}" if unknown.registry is not None and unknown.method else ""
    for guess in GUESSES:
        if found := guess(unknown):
            return f"unknown key{of_method}; {found[0]}", found[1]
    fields = f"; known keys: {', '.join(unknown.fields)}" if unknown.fields else ""
    return f"unknown key{of_method}{fields}", []


def _never_a_key(unknown: _Unknown) -> Guess | None:
    word = unknown.word
    if "trust" in word and "remote" in word:
        return "a recipe must not run code, so this is only the command-line flag --trust-remote-code", []
    if word == "<<":
        return "merge keys are not part of a recipe, use `extends: other.yaml`", []
    if word == "extends":
        return "extends stands at the top of a recipe, not inside a section", []
    return None


def _misplaced_section(unknown: _Unknown) -> Guess | None:
    word = unknown.word
    if unknown.prefix and word in Recipe.model_fields:
        return f"`{word}:` is a section of its own, begin it at the left margin", [word]
    if "." in word and f"{unknown.prefix}{word}" in unknown.every:
        remedy = "dots work on the command line only; in a file, indent the last part below its section"
        return remedy, [f"{unknown.prefix}{word}"]
    return None


def _synonym(unknown: _Unknown) -> Guess | None:
    meant = SYNONYMS.get(unknown.word.lower())
    return _did_you_mean([meant], [f"{unknown.prefix}{meant}"]) if meant in unknown.fields else None


def _of_another_toolkit(unknown: _Unknown) -> Guess | None:
    return foreign_key(unknown.word, unknown.value, unknown.every)


def _secret(unknown: _Unknown) -> Guess | None:
    if not SECRET.fullmatch(unknown.word):
        return None
    return "secrets do not belong in a recipe, export them in the environment (HF_TOKEN, WANDB_API_KEY)", []


def _of_another_section(unknown: _Unknown) -> Guess | None:
    found = [key for key in unknown.every if key.rpartition(".")[2] == unknown.word and "." in key]
    return (f"write it as {listed(found[:3], 'or')}", found) if found else None


def _method_at_the_top(unknown: _Unknown) -> Guess | None:
    """`eva: true` is a method, and no misspelt `eval`; inside a section its keys are nearer."""
    return _name_of_a_method(unknown) if not unknown.prefix else None


def _name_of_a_method(unknown: _Unknown) -> Guess | None:
    return method_key(unknown.word, unknown.value, unknown.registry, unknown.method)


def _misspelt(unknown: _Unknown, cutoff: float = 0.75) -> Guess | None:
    names = near(unknown.word.lower(), unknown.fields, cutoff)
    return _did_you_mean(names, [f"{unknown.prefix}{name}" for name in names])


def _of_another_method(unknown: _Unknown) -> Guess | None:
    registry = unknown.registry
    if registry is None:
        return None
    owners = [
        name for name in registry.names() if unknown.word in registry.declared(name).config.model_fields
    ]
    if not owners:
        return None
    remedy = f"choose another method, or remove the key (~{unknown.prefix}{unknown.word} on the command line)"
    return f"it is a setting of {listed(owners, 'and')}: {remedy}", []


def _far_misspelt(unknown: _Unknown) -> Guess | None:
    return _misspelt(unknown, 0.6)


def _misspelt_of_another_section(unknown: _Unknown) -> Guess | None:
    names = near(unknown.word.lower(), {key.rpartition(".")[2] for key in unknown.every}, 0.8)
    found = [key for key in unknown.every if key.rpartition(".")[2] in names]
    return _did_you_mean(found[:3], found)


GUESSES: tuple[Callable[[_Unknown], Guess | None], ...] = (
    _never_a_key,
    _misplaced_section,
    _synonym,
    _of_another_toolkit,
    _method_at_the_top,
    _misspelt,
    _secret,
    _of_another_section,
    _name_of_a_method,
    _of_another_method,
    _far_misspelt,
    _misspelt_of_another_section,
)


def _fields(slot: Slot | None, value: Json) -> list[str]:
    """The keys that may stand in a section; of a method that is not named, those of all methods."""
    section = slot.section(value) if slot is not None else None
    if section is not None:
        return list(section.model_fields)
    if slot is None or slot.registry is None:
        return []
    registry = slot.registry
    return list(
        dict.fromkeys(key for name in registry.names() for key in registry.declared(name).config.model_fields)
    )


def _did_you_mean(shown: list[str], keys: list[str]) -> Guess | None:
    return (f"did you mean {listed(shown, 'or')}?", keys) if shown else None
