"""What the name of a method was meant to be: its other spellings and names, here and on every other axis."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import cache

from lrft.recipe.foreign_values import NOT_HERE, VALUES, each_word
from lrft.registry.axes import AGGREGATORS, ANALYSES, AXES, FORMATS, TASKS
from lrft.registry.did_you_mean import a, did_you_mean, listed, near, squeezed
from lrft.registry.registry import Registry

# Recipe key -> the registry that its methods come from.
CATALOG: dict[str, Registry] = {
    **AXES,
    "data.format": FORMATS,
    "eval.tasks": TASKS,
    "analyse": ANALYSES,
    "federate.aggregate": AGGREGATORS,
}
LISTS = ("eval.tasks", "analyse")


@dataclass(frozen=True)
class Meaning:
    """A method that a word may mean.

    Attributes:
        key: where it is chosen in a recipe.
        lines: what to write for it, in the section that `key` stands in.
        spelling: the word is its name, spelt otherwise.
    """

    key: str
    name: str
    lines: str
    spelling: bool

    def elsewhere(self) -> str:
        """`it is an init: write init: NAME`, for a recipe that has the word at another key."""
        return f"{a(CATALOG[self.key].kind)}: write {self.placed()}"

    def placed(self) -> str:
        """What to write, with the section that it stands in."""
        section = self.key.rpartition(".")[0]
        return f"{section}.{self.written()}" if section else self.written()

    def settings(self) -> Iterable[str]:
        """The keys of its section."""
        return CATALOG[self.key].declared(self.name).config.model_fields

    def set(self, setting: str, value: object) -> Meaning:
        """The same with one setting written."""
        last = self.key.rpartition(".")[2]
        others = [line for line in self.lines.splitlines() if not line.startswith(f"{last}:")]
        own = f"{last}: {{method: {self.name}, {setting}: {value}}}"
        return replace(self, lines="\n".join([*others, own]), spelling=False)

    def written(self) -> str:
        """The lines within a sentence."""
        return listed(self.lines.splitlines(), "and")


def method_meant(word: str, registry: Registry) -> str:
    """What to say of a name that `registry` does not have: `"; write ..."`, or what it has.

    Looked for are names and aliases here, those of the other axes, near misses here, and near misses elsewhere.
    """
    found = meanings(word)
    here = [meaning for meaning in found if CATALOG[meaning.key] is registry]
    if here:
        spelt = next((meaning.name for meaning in here if meaning.spelling), None)
        return f"; did you mean {spelt}?" if spelt else f"; write {_either(m.written() for m in here)}"
    if remark := of_no_method(word, registry):
        return f"; {remark}"
    if found:
        return f"; it is {_either(meaning.elsewhere() for meaning in found)}"
    if missing := not_here(word, registry):
        return f"; {missing}"
    return _near_miss(word, registry) or did_you_mean(word, registry.names())


def of_no_method(word: str, registry: Registry) -> str:
    """What to write for a word that stands for no method, such as `none` for an axis that may be null."""
    key = next((key for key, known in CATALOG.items() if known is registry), "")
    return VALUES.get(f"{key}.method", {}).get(squeezed(word), "")


def not_here(word: str, registry: Registry) -> str:
    """That lrft lacks a method which others have, and what it has instead; nothing for any other word."""
    return (
        f"lrft does not have {word}{did_you_mean('', registry.names())}" if squeezed(word) in NOT_HERE else ""
    )


def meanings(word: str) -> list[Meaning]:
    """Every method that has `word` as a name or an alias; `NAME_SETTING_16` is a name with a setting."""
    word = word.lower().removeprefix("use_")
    if found := _known().get(squeezed(word)):
        return found
    parts = re.fullmatch(r"(.+)_([a-z]+)_(\d+)", word)
    if parts is None:
        return []
    name, setting, number = parts.groups()
    return [m.set(setting, number) for m in _known().get(squeezed(name), []) if setting in m.settings()]


def _near_miss(word: str, registry: Registry) -> str:
    names = near(word.lower(), registry.names())
    if names:
        return f"; did you mean {' or '.join(names)}?"
    close = [meaning for name in near(squeezed(word), _known(), 0.75) for meaning in _known()[name]]
    here = [meaning for meaning in close if CATALOG[meaning.key] is registry]
    if here:
        return f"; did you mean {_either(meaning.written() for meaning in here)}?"
    if close:
        return f"; did you mean {close[0].name}? It is {close[0].elsewhere()}"
    return ""


@cache
def _known() -> dict[str, list[Meaning]]:
    """Name or alias, squeezed -> the methods it may mean."""
    found: dict[str, list[Meaning]] = {}
    for key, registry in CATALOG.items():
        last = key.rpartition(".")[2]
        for name in registry.names():
            aliases = each_word(registry.declared(name).aliases)
            own = aliases.get(name, f"{last}: [{name}]" if key in LISTS else f"{last}: {name}")
            found.setdefault(squeezed(name), []).append(Meaning(key, name, own, spelling=True))
            for alias, lines in aliases.items():
                if alias != name:
                    found.setdefault(squeezed(alias), []).append(Meaning(key, name, lines, spelling=False))
    return found


def _either(phrases: Iterable[str]) -> str:
    return " or ".join(dict.fromkeys(phrases))
