"""A recipe with every default spelled out: as text, as a hash, and as a list of differences."""

from __future__ import annotations

import hashlib
import json
from typing import TYPE_CHECKING

import yaml
from pydantic import BaseModel

try:
    from yaml import CSafeDumper as _InC
except ImportError:
    from yaml import SafeDumper as _InC  # type: ignore[assignment]

from lrft.recipe.document import parse
from lrft.recipe.scalars import CORE_SCALARS
from lrft.recipe.schema import Recipe
from lrft.recipe.tree import Keys, Node, Place, dotted
from lrft.registry.config import ADDED
from lrft.registry.json import Json
from lrft.registry.section import Before

if TYPE_CHECKING:
    from lrft.recipe.load import LoadedRecipe

ABSENT = "(absent)"
LINE = 2**31 - 1  # characters: libyaml's largest, so that every value stands on one line
# What may change while a run goes on: where numbers go and lie, how often they are kept, how many steps there are.
FREE_SECTIONS = ("logging", "export", "eval", "offload")
FREE_TRAIN = ("extended", "save_every", "keep_last", "shard_base")


def resolved(recipe: Recipe) -> str:
    """YAML text of the recipe, one value a line, in the schema's order; loads back to an equal recipe."""
    plain = recipe.model_dump(mode="json")
    # libyaml writes the same text in a quarter of the time, but escapes what is beyond the basic plane: an emoji.
    beyond = max(recipe.model_dump_json(), default="") > "\uffff"
    dumper = _Dumper if beyond else _FastDumper
    return yaml.dump(plain, Dumper=dumper, sort_keys=False, allow_unicode=True, width=LINE)


def recipe_hash(recipe: Recipe) -> str:
    """sha256 (hex) of the recipe's canonical JSON: equal recipes have equal hashes, however written.

    A key that a later version brought counts once it is set, so that runs of earlier ones stay what they are.
    """
    text = json.dumps(_without_added(recipe), sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def decisive_hash(recipe: Recipe) -> str:
    """sha256 (hex) of what decides the weights at a step: the recipe without what may change while a run goes on."""
    plain = {key: value for key, value in _without_added(recipe).items() if key not in FREE_SECTIONS}
    train = plain.get("train")
    assert isinstance(train, dict), "every recipe has the section"
    plain["train"] = {key: value for key, value in train.items() if key not in FREE_TRAIN}
    return hashlib.sha256(json.dumps(plain, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def _without_added(section: BaseModel) -> dict[str, Json]:
    """The values of a section, without the keys marked `ADDED` that have their default."""
    plain: dict[str, Json] = section.model_dump(mode="json")
    for name, slot in type(section).model_fields.items():
        value = getattr(section, name)
        defaults = [slot.get_default(call_default_factory=True)]
        defaults += [mark.value for mark in slot.metadata if isinstance(mark, Before)]
        if ADDED in slot.metadata and value in defaults:
            del plain[name]
        elif isinstance(value, BaseModel):
            plain[name] = _without_added(value)
        elif isinstance(value, list) and value and all(isinstance(one, BaseModel) for one in value):
            plain[name] = [_without_added(one) for one in value]
    return plain


def compare(a: Recipe, b: Recipe) -> list[tuple[str, Json, Json]]:
    """Where two recipes differ: (dotted key, value in a, value in b), `ABSENT` where one has no such key."""
    left, right = flat(a), flat(b)
    return [
        (dotted(keys), left.get(keys, ABSENT), right.get(keys, ABSENT))
        for keys in dict.fromkeys([*left, *right])
        if left.get(keys, ABSENT) != right.get(keys, ABSENT)
    ]


def with_origins(loaded: LoadedRecipe) -> str:
    """The resolved text with each value's origin as a comment."""
    text = resolved(loaded.recipe)
    root, _ = parse(text, Place("resolved", 1))
    lines = text.splitlines()
    for keys in flat(loaded.recipe):
        node = root.get(*keys)
        assert isinstance(node, Node) and node.place.line is not None
        lines[node.place.line - 1] += f"  # {loaded.origins[dotted(keys)]}"
    return "\n".join(lines) + "\n"


def flat(recipe: Recipe) -> dict[Keys, Json]:
    """Keys -> value of every value in the recipe; a list, and an empty section, is one value."""
    return dict(_flat(recipe.model_dump(mode="json"), ()))


def _flat(value: Json, keys: Keys) -> list[tuple[Keys, Json]]:
    if isinstance(value, dict) and value:
        return [found for key, inside in value.items() for found in _flat(inside, (*keys, key))]
    return [(keys, value)]


class _OneLine:
    """Quotes what either YAML 1.1 or 1.2 would not read as text, and keeps every value on one line."""

    def ignore_aliases(self, data: object) -> bool:
        return True


class _Dumper(_OneLine, yaml.SafeDumper):
    """In Python."""


class _FastDumper(_OneLine, _InC):
    """In C, where PyYAML was built with it."""


def _represent_text(dumper: yaml.representer.SafeRepresenter, text: str) -> yaml.Node:
    style = '"' if not text.isprintable() else None
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style=style)


for _kind in (_Dumper, _FastDumper):
    _kind.add_representer(str, _represent_text)
    for _tag, _pattern in CORE_SCALARS.items():
        _kind.add_implicit_resolver(_tag, _pattern, None)
