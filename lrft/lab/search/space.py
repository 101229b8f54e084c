"""The space of a search: a YAML file of recipe keys and what each may be."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import count, islice, pairwise
from pathlib import Path

from lrft.core.search import Gene, Genes
from lrft.recipe.document import parse, read_text
from lrft.recipe.tree import Node, Place, shown
from lrft.registry.did_you_mean import did_you_mean
from lrft.registry.errors import Problem, RecipeError
from lrft.registry.json import Json

CHOICE, SUBSET = "choice", "subset"
RANGE = ("low", "high", "log")
FORMS = "write a list, {low: 1e-4, high: 1e-2, log: true}, {choice: [...]} or {subset: [...]}"
# What decides which numbers a score is over: arms that differ in it cannot be told apart by their scores.
SCORED = (
    "model.name model.revision model.weights model.tokenizer model.add_tokens model.head data.eval data.split "
    "data.format train.max_length eval"
).split()


@dataclass(frozen=True)
class Dimension:
    """A key and what it may be.

    Attributes:
        items: the options; of a subset, what each of its genes says is in or out.
        subset: the value is a list of some of the items.
    """

    key: str
    place: Place
    genes: tuple[Gene, ...]
    items: tuple[Json, ...] = ()
    subset: bool = False

    def value(self, genes: Genes) -> Json:
        """What the key is set to, given the values of the dimension's own genes."""
        if self.subset:
            return [item for item, is_in in zip(self.items, genes, strict=True) if is_in]
        return self.items[int(genes[0])] if self.items else genes[0]

    def trials(self) -> list[Genes]:
        """Its own genes for every option, for both ends of a range, or for every item alone."""
        if self.subset:
            return [tuple(int(at == one) for at in range(len(self.items))) for one in range(len(self.items))]
        (gene,) = self.genes
        return (
            [(option,) for option in range(gene.options)] if gene.options else [(gene.at(0),), (gene.at(1),)]
        )


@dataclass(frozen=True)
class Space:
    """All keys of a search, sections before their settings, else in the order of the file."""

    file: str
    dimensions: tuple[Dimension, ...]

    @property
    def genes(self) -> tuple[Gene, ...]:
        """Those of every dimension, one after the other."""
        return tuple(gene for dimension in self.dimensions for gene in dimension.genes)

    def values(self, genes: Genes) -> dict[str, Json]:
        """Key -> what a configuration sets it to."""
        numbers = iter(genes)
        return {one.key: one.value(tuple(islice(numbers, len(one.genes)))) for one in self.dimensions}

    def sections_of(self, key: str) -> list[Dimension]:
        """The dimensions that choose a section which `key` stands in."""
        return [one for one in self.dimensions if key.startswith(f"{one.key}.")]

    def record(self) -> dict[str, Json]:
        """Key -> what it may be, as plain values."""
        return {
            one.key: {SUBSET: list(one.items)}
            if one.subset
            else {CHOICE: list(one.items), "ordered": one.genes[0].ordered}
            if one.items
            else {name: getattr(one.genes[0], name) for name in (*RANGE, "whole")}
            for one in self.dimensions
        }


def read_space(path: Path) -> Space:
    """The space in a file.

    Raises:
        RecipeError: with every problem of its form, each with file, line and key.
    """
    root, problems = parse(read_text(path), Place(str(path), 1, path.parent))
    if not isinstance(root.value, dict) or not root.value:
        message = f"holds {shown(root.plain())}; a space is a mapping such as `adapter.rank: [4, 8, 16]`"
        raise RecipeError([*problems, Problem("", message, str(path), 1)])
    found = []
    for key, node in root.value.items():
        try:
            found.append(_dimension(key, node))
        except RecipeError as error:
            problems += error.problems
    if problems:
        raise RecipeError(problems)
    order = count()
    return Space(str(path), tuple(sorted(found, key=lambda one: (one.key.count("."), next(order)))))


def _dimension(key: str, node: Node) -> Dimension:
    """A key of the file.

    Raises:
        RecipeError: it has none of the forms, or must be the same for all arms.
    """
    if next((fixed for fixed in SCORED if f"{key}.".startswith(f"{fixed}.")), None):
        raise _problem(
            node, key, "decides what is scored, so arms that differ in it cannot be compared; take it out"
        )
    if isinstance(node.value, list):
        return _of_options(key, node, node.value, CHOICE if not _ascends(node.value) else "")
    if not isinstance(node.value, dict):
        message = f"{shown(node.plain())} is one value; {FORMS}, or give {key}=... beside the recipe"
        raise _problem(node, key, message)
    if len(node.value) == 1 and (form := next(iter(node.value))) in (CHOICE, SUBSET):
        inside = node.value[form]
        if not isinstance(inside.value, list):
            raise _problem(inside, f"{key}.{form}", f"must be a list, not {shown(inside.plain())}")
        return _of_options(key, node, inside.value, form)
    unknown = [name for name in node.value if name not in RANGE]
    if unknown:
        near = did_you_mean(unknown[0], [*RANGE, CHOICE, SUBSET])
        raise _problem(
            node.value[unknown[0]], key, f"{unknown[0]} is no form of a space{near}; {FORMS}, at dotted keys"
        )
    return _of_range(key, node)


def _of_options(key: str, node: Node, items: Sequence[Node], form: str) -> Dimension:
    values = tuple(item.plain() for item in items)
    if len(values) < 2:
        raise _problem(
            node, key, "needs two values or more; one value is given as KEY=VALUE beside the recipe"
        )
    twice = next((item for at, item in enumerate(items) if item.plain() in values[:at]), None)
    if twice is not None:
        raise _problem(twice, key, f"has {shown(twice.plain())} twice")
    if form == SUBSET:
        genes = tuple(Gene(f"{key}[{shown(value)}]", 2) for value in values)
        return Dimension(key, node.place, genes, values, subset=True)
    return Dimension(key, node.place, (Gene(key, len(values), ordered=form != CHOICE),), values)


def _of_range(key: str, node: Node) -> Dimension:
    plain = node.plain()
    assert isinstance(plain, dict)
    low, high, log = plain.get("low"), plain.get("high"), plain.get("log", False)
    for name, end in (("low", low), ("high", high)):
        if not _is_number(end):
            raise _problem(node, f"{key}.{name}", f"must be a number, not {shown(end)}")
    if not isinstance(log, bool):
        raise _problem(node, f"{key}.log", f"must be true or false, not {shown(log)}")
    assert isinstance(low, int | float) and isinstance(high, int | float)
    if not low < high:
        raise _problem(node, f"{key}.high", f"must be more than low, which is {low:g}")
    if log and low <= 0:
        raise _problem(node, f"{key}.low", "must be above 0 where log is true")
    whole = isinstance(low, int) and isinstance(high, int)
    return Dimension(key, node.place, (Gene(key, 0, True, low, high, log, whole),))


def _ascends(items: Sequence[Node]) -> bool:
    """Whether the items are numbers, each above the one before it."""
    values = [item.plain() for item in items]
    return all(map(_is_number, values)) and all(a < b for a, b in pairwise(values))  # type: ignore[operator]


def _is_number(value: Json) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _problem(node: Node, key: str, message: str) -> RecipeError:
    return RecipeError(node.place.problem(key, message))
