"""What cannot work together, found before weights are read: set algebra over traits, and clashes of keys."""

from __future__ import annotations

from collections.abc import Collection, Iterator

from lrft.recipe.clashes import CLASHES, Faulty, Settings
from lrft.recipe.data_clashes import own_formats
from lrft.recipe.length import length_problems
from lrft.recipe.schema import Recipe
from lrft.registry.axes import ANALYSES, AXES, FORMATS
from lrft.registry.did_you_mean import listed
from lrft.registry.errors import Problem
from lrft.registry.json import Json
from lrft.registry.own_format import own_format
from lrft.registry.source import each_source
from lrft.registry.traits import TRAITS

# Traits that come from settings and not from methods, and what to write for them.
SET = {
    "base_weights": "trainable: full, or trainable with patterns of parameters",
    "fixed_base": "trainable: adapter",
    "one_stage": "restart: null",
    "score_head": "model.head: [LABEL, ...]",
    "eager": "model.compile: false",
}


def check(recipe: Recipe) -> list[Problem]:
    """Every combination in a valid recipe that cannot work; empty when all is well."""
    return [*conflicts(recipe.model_dump()), *length_problems(recipe, recipe.train.max_steps)]


def unfinished(recipe: Recipe) -> list[Problem]:
    """What the chosen methods' own files still owe, with their lines; empty but for an author at work."""
    chosen = [(AXES[axis], part.method) for axis, part in recipe.parts().items()]
    chosen += [(ANALYSES, part.method) for part in recipe.analyse]
    forms = [
        recipe.data.format,
        *map(own_format, each_source(recipe.data.train)),
        *map(own_format, each_source(recipe.data.eval)),
    ]
    chosen += [(FORMATS, form.method) for form in forms if form is not None]
    return [problem for registry, name in chosen for problem in registry.unfinished(name)]


def conflicts(plain: Json, faulty: Collection[str] = ()) -> list[Problem]:
    """The same for a recipe as written, with every method named.

    Args:
        faulty: dotted keys that are wrong already; nothing is concluded from them.
    """
    settings = Settings(plain, faulty)
    found: list[Problem] = []
    for find in (_unmet_requirements, *CLASHES):
        try:
            found += list(find(settings))
        except Faulty:
            continue
    return found


def _unmet_requirements(settings: Settings) -> Iterator[Problem]:
    chosen = {
        axis: registry.declared(settings.text(f"{axis}.method"))
        for axis, registry in AXES.items()
        if settings[axis] is not None
    }
    # Whether inputs are dropped is a setting and no method's trait; `_dropped_function` tells of it by its key.
    provided = frozenset({"undropped"}).union(*(part.provides for part in chosen.values()))
    # A format that is still to be guessed may be any; this is asked again when it is known.
    guessed = settings["data.format"] is None
    formats = FORMATS.names() if guessed else [settings.text("data.format.method")]
    of_formats = frozenset[str]().union(*(FORMATS.declared(name).provides for name in formats))
    provided |= of_formats.intersection(*(form.provides for form in own_formats(settings).values()))
    provided |= {"fixed_base" if settings["trainable.weights"] == "adapter" else "base_weights"}
    provided |= {"one_stage"} if settings["restart"] is None else set()
    adds = settings["adapter"] is None or "own_weights" not in chosen["adapter"].provides
    provided |= {"beside_base"} if adds else set()
    stays = settings["adapter"] is not None and "unfolded" in chosen["adapter"].provides
    provided |= set() if stays else {"foldable"}
    provided |= {"eager"} if settings["model.compile"] is not True else set()
    provided |= {"score_head"} if settings["model.head"] is not None else set()
    looking = {f"analyse.{place}": ANALYSES.declared(name) for place, name in _analyses(settings)}
    for axis, part in {**chosen, **looking}.items():
        for trait in sorted(part.requires - provided):
            lacking = f"{part.name} requires what no chosen part provides: {_meaning(trait)}"
            message = f"{lacking}; {_remedy(trait)}"
            yield Problem(f"{axis}.method", message)
    if settings["train.clip"] is not None and "clippable" not in provided and _providers("clippable"):
        message = f"{chosen['optimizer'].name} does not let gradients be clipped; write train.clip: null"
        yield Problem("train.clip", message)


def _analyses(settings: Settings) -> Iterator[tuple[int, str]]:
    """Place and method of every analysis."""
    written = settings["analyse"]
    for place, one in enumerate(written if isinstance(written, list) else []):
        name = one.get("method") if isinstance(one, dict) else one
        if isinstance(name, str) and name in ANALYSES.names():
            yield place, name


def _meaning(trait: str) -> str:
    return f"{TRAITS[trait]} ({trait})" if trait in TRAITS else trait


def _providers(trait: str) -> dict[str, list[str]]:
    """Axis, or `data.format` -> the registered methods that provide the trait."""
    found = {
        axis: [name for name in registry.names() if trait in registry.declared(name).provides]
        for axis, registry in {**AXES, "data.format": FORMATS}.items()
    }
    return {axis: names for axis, names in found.items() if names}


def _remedy(trait: str) -> str:
    if trait in SET:
        return f"write {SET[trait]}"
    providers = _providers(trait)
    if not providers:
        return "no registered method provides it, so choose another method here"
    return "choose " + " or ".join(f"{axis} {listed(names, 'or')}" for axis, names in providers.items())
