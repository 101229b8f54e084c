"""From a name or a file to a checked recipe, with every problem reported at once."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from lrft.core import stop
from lrft.recipe import library
from lrft.recipe.check import conflicts, unfinished
from lrft.recipe.document import parse, read_text
from lrft.recipe.explain import validated
from lrft.recipe.length import length_problems
from lrft.recipe.merge import COMMAND_LINE, is_override, merge, override, spelled_out
from lrft.recipe.no_secrets import secrets_in
from lrft.recipe.paths import located
from lrft.recipe.resolved import flat
from lrft.recipe.schema import Recipe, null_axes
from lrft.recipe.texts import with_texts
from lrft.recipe.tree import Keys, Node, Place, dotted, shown
from lrft.registry.axes import AXES
from lrft.registry.errors import Problem, RecipeError, UsageError
from lrft.registry.json import to_section

DEFAULT = Place("default")
MAX_PARENTS = 20


@dataclass(frozen=True)
class LoadedRecipe:
    """A checked recipe and where each of its values comes from.

    Attributes:
        origins: dotted key -> `file:line`, `command line` or `default`, for every value of the recipe.
        path: the file it was read from.
        name: the file's stem.
        run: the run folder that recorded it, of a run that is gone on with.
    """

    recipe: Recipe
    origins: dict[str, str]
    path: Path
    name: str
    run: Path | None = None


def load_recipe(
    name_or_path: str | Path, overrides: Sequence[str] = (), trained: bool = False
) -> LoadedRecipe:
    """Read a recipe file or a packaged recipe, its parents and the overrides, and check the whole.

    Args:
        overrides: `key.sub=value` or `~key.sub`, applied in order.
        trained: it is a run's own, whose length has proved itself.

    Raises:
        RecipeError: with every problem found, in the order of the file.
    """
    stop.poll()
    path = locate(name_or_path)
    root, problems = _layers(path, ())
    root, problems = _apply_overrides(root, overrides, problems)
    root, found = located(root, trained)
    root, unread = with_texts(root)
    problems += ([] if trained else secrets_in(root)) + found + unread
    root = _with_methods_named(root)
    recipe, found, meant = validated(root)
    problems += _new(found, problems)
    if recipe is not None and not trained and (owed := unfinished(recipe)):
        raise RecipeError(owed)  # what else is wrong may follow from it
    clashes = conflicts(root.plain(), {problem.key for problem in problems} | meant)
    if recipe is not None and not trained:
        clashes += length_problems(recipe, recipe.train.max_steps)
    problems += _new([_at(root, clash).problem(clash.key, clash.message) for clash in clashes], problems)
    if problems or recipe is None:
        raise RecipeError(_in_order(problems, path))
    origins = {dotted(keys): _origin(root, keys) for keys in flat(recipe)}
    return LoadedRecipe(recipe, origins, path, path.stem)


def as_loaded(recipe: LoadedRecipe | str | Path, overrides: Sequence[str] = ()) -> LoadedRecipe:
    """The recipe as `load_recipe` gives it, whether it was loaded, or only named.

    Raises:
        RecipeError: see `load_recipe`.
        UsageError: there are overrides for a recipe that is loaded already.
    """
    if not isinstance(recipe, LoadedRecipe):
        return load_recipe(recipe, overrides)
    if overrides:
        raise UsageError("overrides: the recipe is loaded already; give them to load_recipe")
    return recipe


def validate(arguments: Sequence[str]) -> list[tuple[str, list[Problem]]]:
    """(recipe, problems) of each recipe among the arguments, with the overrides among them applied to each.

    Raises:
        UsageError: there is no recipe among them.
    """
    overrides = [argument for argument in arguments if is_override(argument)]
    files = [argument for argument in arguments if not is_override(argument)]
    if not files:
        raise UsageError("give a recipe before the overrides, such as quickstart train.max_steps=10")
    found: list[tuple[str, list[Problem]]] = []
    for file in files:
        try:
            load_recipe(file, overrides)
            found.append((file, []))
        except RecipeError as error:
            found.append((file, error.problems))
    return found


def locate(name_or_path: str | Path) -> Path:
    """The file meant: an existing file, else a packaged recipe, else the name with `.yaml`.

    Raises:
        RecipeError: there is none.
    """
    name = str(name_or_path)
    if os.path.isfile(name):
        return Path(name)
    if library.has(name.removesuffix(".yaml")):
        return library.find(name)
    if os.path.isfile(f"{name}.yaml"):
        return Path(f"{name}.yaml")
    if os.path.isdir(name):
        inside = os.path.join(name, "recipe.yaml")
        resume = f"add --resume to go on with the run, or give {inside} for a new one"
        hint = resume if os.path.isfile(inside) else "give the .yaml file inside it"
        raise RecipeError(Problem("", f"is a folder, not a recipe; {hint}", name))
    if os.path.exists(name):
        return Path(name)  # a device or pipe: refused by the reader, by name
    return library.find(name)


def _apply_overrides(
    root: Node, overrides: Sequence[str], problems: list[Problem]
) -> tuple[Node, list[Problem]]:
    for text in overrides:
        try:
            root, found = override(root, text)
        except RecipeError as error:
            found = error.problems
        problems = [*problems, *found]
    return root, problems


def _layers(path: Path, chain: tuple[Path, ...]) -> tuple[Node, list[Problem]]:
    """The file's tree over its parents'."""
    root, problems = parse(read_text(path), Place(str(path), 1, path.parent))
    if root.value is None and not problems:
        message = "is empty; a recipe has at least the sections model and data (`lrft recipes ls` shows some)"
        raise RecipeError(Problem("", message, str(path)))
    if not isinstance(root.value, dict):
        message = f"holds {shown(root.value)}; a recipe is a mapping of sections such as `model:` and `data:`"
        raise RecipeError([*problems, Problem("", message, str(path), 1)])
    parent = root.get("extends")
    root = spelled_out(root.with_value(("extends",), None))
    if parent is None or parent.value is None:
        return root, problems
    try:
        below, more = _layers(_parent(parent, path, chain), (*chain, path.resolve()))
    except RecipeError as error:
        raise RecipeError([*problems, *error.problems]) from error
    return merge(below, root), [*more, *problems]


def _parent(extends: Node, path: Path, chain: tuple[Path, ...]) -> Path:
    name = extends.value
    if not isinstance(name, str) or not name:
        raise RecipeError(
            extends.place.problem("extends", f"must be the name of one recipe, not {shown(extends.plain())}")
        )
    beside = [path.parent / name, path.parent / f"{name}.yaml"]
    found = next((file for file in beside if os.path.isfile(file)), None)
    try:
        found = found or library.find(name)
    except RecipeError as error:
        raise RecipeError(extends.place.problem("extends", str(error))) from error
    seen = [*chain, path.resolve()]
    if found.resolve() in seen:
        names = [file.name for file in [*seen[seen.index(found.resolve()) :], found]]
        message = f"goes in a circle: {' extends '.join(names)}; remove one of these lines"
        raise RecipeError(extends.place.problem("extends", message))
    if len(seen) >= MAX_PARENTS:
        message = f"is the {MAX_PARENTS}th recipe of a chain; extend a recipe nearer to the base"
        raise RecipeError(extends.place.problem("extends", message))
    return found


def _with_methods_named(root: Node) -> Node:
    """Axes without a `method` get the default one: `optimizer: {lr: 1e-4}` is the default optimizer."""
    unset = null_axes(to_section(root.plain()))
    for axis in AXES:
        section = root.get(axis)
        if axis in unset:
            root = root.with_value((axis,), Node(None, DEFAULT))
        elif section is None or (isinstance(section.value, dict) and "method" not in section.value):
            default = Recipe.model_fields[axis].default
            if default is not None:
                root = root.with_value((axis, "method"), Node(default, DEFAULT))
    return root


def _new(found: list[Problem], known: list[Problem]) -> list[Problem]:
    """The problems of keys that nothing was said about yet."""
    keys = {problem.key for problem in known if problem.key}
    return [problem for problem in found if problem.key not in keys]


def _at(root: Node, problem: Problem) -> Place:
    place = root.nearest(*problem.key.split("."))
    return root.nearest() if place == DEFAULT else place


def _origin(root: Node, keys: Keys) -> str:
    node = root.get(*keys)
    return str(node.place if node is not None else DEFAULT)


def _in_order(problems: list[Problem], path: Path) -> list[Problem]:
    """By line; the recipe's own file before its parents, the command line last."""
    rank = {str(path): 0, COMMAND_LINE.file: 2}
    return sorted(problems, key=lambda p: (rank.get(p.file, 1), p.file, p.line or 0))
