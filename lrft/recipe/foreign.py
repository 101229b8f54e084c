"""What a key of another toolkit means here, with its value translated where the values differ too."""

from __future__ import annotations

from lrft.recipe.foreign_answers import BY_VALUE
from lrft.recipe.foreign_keys import CHOICES, KEYS
from lrft.recipe.foreign_values import NOT_HERE, VALUES
from lrft.recipe.keys_not_here import REMARKS
from lrft.recipe.meant import CATALOG, Meaning, meanings, not_here, of_no_method
from lrft.recipe.tree import shown
from lrft.registry.did_you_mean import listed, squeezed
from lrft.registry.json import Json
from lrft.registry.registry import Registry
from lrft.registry.templates import template_names

Guess = tuple[str, list[str]]
"""What to say of an unknown key, and the keys it may have been meant to be."""


UNASKED = "nothing of the kind happens unless a recipe asks for it, remove the line"


def foreign_key(word: str, value: Json, every: list[str]) -> Guess | None:
    """What another toolkit's key is called here, or that there is none.

    Args:
        value: what is written at it.
        every: the dotted keys that the recipe could hold.
    """
    name = word.lower().replace("-", "_")
    if name == "warmup":
        whole = isinstance(value, int) and value >= 1
        return _renamed("schedule.warmup_steps" if whole else "schedule.warmup_ratio", every)
    if name in KEYS:
        return _renamed(KEYS[name], every)
    if CHOICES.get(name) == "data.format" and (named := squeezed(_text(value))) in template_names():
        return f"write data.format: chat and data.template: {named}", ["data.template"]
    if name in CHOICES and (found := _chosen(CHOICES[name], value)):
        return found
    if name in BY_VALUE:
        return _answered(BY_VALUE[name], value)
    if name in REMARKS:
        return REMARKS[name], []
    if squeezed(name) in NOT_HERE:
        return "lrft does not have it, remove the line", []
    return _did_you_mean(CHOICES[name]) if name in CHOICES else None


def method_key(word: str, value: Json, registry: Registry | None, method: str) -> Guess | None:
    """A key that is, or begins with, the name of a method: `use_NAME`, `NAME_config`, `NAME_rank`.

    Args:
        value: what is written at it.
        registry: where the methods of its section come from.
        method: the one that the section chooses.
    """
    name = word.lower().replace("-", "_").removeprefix("peft_").removeprefix("use_")
    for stem in (name, name.removesuffix("_config"), name.removesuffix("_init")):
        if found := meanings(stem):
            if value is False or value is None:
                return UNASKED, []
            if any(CATALOG[meaning.key] is registry and meaning.name == method for meaning in found):
                return f"{method} is that already, remove the line", []
            return _is(found), [meaning.key for meaning in found]
    for place, letter in enumerate(name):
        head, setting = name[:place], name[place + 1 :]
        if letter == "_" and (owners := [m for m in meanings(head) if setting in m.settings()]):
            return f"write {owners[0].set(setting, shown(value)).placed()}", [owners[0].key]
    return None


def other_value(key: str, word: str, allowed: list[str]) -> str:
    """What to write for a word that no literal of `key` is: `"; write cuda"`, or nothing.

    Args:
        allowed: the literals.
    """
    said = VALUES.get(key, {}).get(squeezed(word))
    if said is None:
        near = next((literal for literal in allowed if squeezed(literal) == squeezed(word)), None)
        said = f"write {near}" if near is not None else None
    if said is None and (found := meanings(word)):
        said = _is(found)
    return f"; {said}" if said else ""


def _answered(answers: dict[str, str], value: Json) -> Guess:
    """What is said of this value of a key, or which key it is about."""
    said = answers.get(squeezed(_text(value)), answers.get("*"))
    if said is not None:
        return said, []
    if value is False or value is None:
        return UNASKED, []
    key = next(iter(answers.values())).removeprefix("write ").partition(":")[0]
    return _did_you_mean(key)


def _renamed(meant: str, every: list[str]) -> Guess:
    axis, _, setting = meant.rpartition(".")
    if meant in every or axis not in CATALOG:
        return _did_you_mean(meant)
    registry = CATALOG[axis]
    owners = [name for name in registry.names() if setting in registry.declared(name).config.model_fields]
    return f"it is {meant} here, a setting of {listed(owners[:4], 'and')}", [meant]


def _chosen(axis: str, value: Json) -> Guess | None:
    """A method named by its value, at a key of another name."""
    word = _text(value)
    found = meanings(word) or (meanings(f"{word}bit") if isinstance(value, int) else [])
    here = [meaning for meaning in found if meaning.key == axis]
    if here:
        return f"write {' or '.join(meaning.placed() for meaning in here)}", [axis]
    if remark := of_no_method(word, CATALOG[axis]) or not_here(word, CATALOG[axis]):
        return remark, [axis]
    if isinstance(value, bool):
        return None
    return (_is(found), [meaning.key for meaning in found]) if found else None


def _is(found: list[Meaning]) -> str:
    return f"it is {' or '.join(dict.fromkeys(meaning.elsewhere() for meaning in found))}"


def _did_you_mean(key: str) -> Guess:
    return f"did you mean {key}?", [key]


def _text(value: Json) -> str:
    """A plain value as YAML has it: `true`, `null`, `4`."""
    if value is None:
        return "null"
    return str(value).lower() if isinstance(value, bool) else str(value)[:100]
