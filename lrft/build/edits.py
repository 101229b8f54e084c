"""Changes of a recipe that let it fit into less memory, the cheapest first, each planned again to prove it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import combinations
from typing import NamedTuple

from pydantic import ValidationError

from lrft.build.steps import rows_of_a_pass
from lrft.recipe.check import conflicts
from lrft.recipe.schema import Recipe
from lrft.registry.axes import OPTIMIZERS, QUANTIZERS
from lrft.registry.errors import RecipeError
from lrft.registry.json import Json

Planned = Callable[[Recipe], int]
"""The bytes of a recipe's peak; a `RecipeError` where it cannot be."""

ENOUGH = 3
TRIES = 24


class Edit(NamedTuple):
    """A change of a recipe.

    Attributes:
        overrides: as the command line takes them.
        costs: what is given up, in words.
        price: how much that is; edits are tried in this order.
    """

    overrides: tuple[str, ...]
    costs: str
    price: float

    @property
    def keys(self) -> set[str]:
        """The settings that it changes."""
        return {override.partition("=")[0] for override in self.overrides}


class Fitting(NamedTuple):
    """An edit with which the recipe fits, and the bytes that it then takes."""

    edit: Edit
    total: int


def fitting(recipe: Recipe, limit: int, plan: Planned, enough: int = ENOUGH) -> list[Fitting]:
    """The cheapest edits with which the plan is within `limit` bytes.

    Edits are taken to add up: where some do not fit together, fewer of them are not planned.

    Args:
        plan: plans a recipe anew.
        enough: stop at so many.
    """
    search = _Search(recipe, limit, plan)
    for edit in _in_order(search.single):
        if len(search.found) >= enough or search.tried >= TRIES:
            break
        if any(known.edit.keys <= edit.keys for known in search.found):
            continue  # more of what was enough
        if not search.is_hopeless(edit):
            search.look_at(edit)
    return search.found


class _Search:
    """What was found so far, and what need not be looked at.

    Attributes:
        single: the edits of one setting each.
        farthest: the keys of a setting -> the edit that goes farthest, of several the smallest micro-batch.
        found: edits that fit.
        hopeless, hopeful: keys of settings that do not fit, or do, all of them changed as far as they go.
        tried: how often was planned.
    """

    def __init__(self, recipe: Recipe, limit: int, plan: Planned) -> None:
        self.recipe, self.limit, self.plan = recipe, limit, plan
        self.single = list(edits(recipe))
        self.farthest = {frozenset(edit.keys): edit for edit in self.single}
        self.found: list[Fitting] = []
        self.hopeless: list[frozenset[str]] = []
        self.hopeful: list[frozenset[str]] = []
        self.totals: dict[tuple[str, ...], int | None] = {}

    @property
    def tried(self) -> int:
        return len(self.totals)

    def is_hopeless(self, edit: Edit) -> bool:
        """Whether more than the edit does not fit: it and all that is no dearer, and less and less of that."""
        dearest = max(one.price for keys, one in self.farthest.items() if keys <= edit.keys)
        together = {keys: one for keys, one in self.farthest.items() if one.price <= dearest}
        for known in self.found:  # of which not everything may be among it
            if known.edit.keys <= set[str]().union(*together):
                del together[next(k for k in together if k <= known.edit.keys and not k <= edit.keys)]
        while self._fits(list(together.values())):
            beside = next((keys for keys in together if not keys <= edit.keys), None)
            if beside is None:
                return False
            del together[beside]
        return True

    def look_at(self, edit: Edit) -> None:
        """Plan an edit."""
        total = self._total(edit.overrides)
        if total is not None and total <= self.limit:
            self.found.append(Fitting(edit, total))

    def _fits(self, several: Sequence[Edit]) -> bool:
        """Whether these fit together; they may where nobody can say."""
        keys = frozenset[str]().union(*(edit.keys for edit in several))
        if any(keys <= known for known in self.hopeless):
            return False
        if any(known <= keys for known in self.hopeful):
            return True
        total = self._total(tuple(text for edit in several for text in edit.overrides))
        fits = total is None or total <= self.limit
        if total is not None:
            (self.hopeful if fits else self.hopeless).append(keys)
        return fits

    def _total(self, overrides: tuple[str, ...]) -> int | None:
        """Of the recipe with these; None where it cannot be."""
        if overrides not in self.totals:
            try:
                self.totals[overrides] = self.plan(applied(self.recipe, overrides))
            except RecipeError:
                self.totals[overrides] = None
        return self.totals[overrides]


def edits(recipe: Recipe) -> Iterator[Edit]:
    """What could be changed, one thing at a time."""
    settings, rows = recipe.train, rows_of_a_pass(recipe)
    halves = [rows // 2**n for n in range(1, rows.bit_length()) if rows % 2**n == 0]
    for size in dict.fromkeys([*halves, 1] if rows > 1 else []):
        steps = settings.gradient_accumulation * rows // size
        yield Edit(
            (f"train.batch_size={size}", f"train.gradient_accumulation={steps}"),
            "the same result, in smaller micro-batches",
            1 + rows / size / 100,
        )
    if recipe.model.activation_checkpointing is not True:
        yield Edit(
            ("model.activation_checkpointing=true",),
            "the same result, the forward pass done twice",
            2,
        )
    dropout = getattr(recipe.adapter, "dropout", 0)
    if isinstance(dropout, float) and dropout > 0:
        yield Edit(("adapter.dropout=0",), "another regularization", 3)
    lighter = OPTIMIZERS.get(recipe.optimizer.method).lighter
    if lighter is not None:
        yield Edit((f"optimizer.method={lighter}",), "the optimizer's state is rounded", 4)
    format_ = QUANTIZERS.get(recipe.quantization.method).lighter
    if format_ is not None and recipe.trainable.weights != "full":
        yield Edit((f"quantization.method={format_}",), "the base is rounded", 6)
    if settings.device == "cpu" and "weights" not in recipe.offload.parts:
        yield Edit(
            ("offload.weights=disk",), "the same result, every block read from a disk when it is used", 7
        )
    if settings.max_length >= 128:
        yield Edit(
            (f"train.max_length={settings.max_length // 2}",),
            "data.too_long decides on longer rows",
            8,
        )


def _in_order(single: Sequence[Edit]) -> list[Edit]:
    """Edits, and pairs and triples of edits of different keys, the cheapest first."""
    combined = list(single)
    for count in (2, 3, 4, 5):
        for parts in combinations(single, count):
            apart = sum(len(part.keys) for part in parts) == len(set[str]().union(*(p.keys for p in parts)))
            if apart and (count == 2 or _goes_far(parts, single)):
                overrides = tuple(override for part in parts for override in part.overrides)
                costs = "; ".join(part.costs for part in parts)
                combined.append(Edit(overrides, costs, sum(part.price for part in parts)))
    return sorted(combined, key=lambda edit: edit.price)


def _goes_far(parts: Sequence[Edit], single: Sequence[Edit]) -> bool:
    """Of many edits at once only the smallest micro-batch is worth trying."""
    sizes = [edit for edit in single if edit.overrides[0].startswith("train.batch_size=")]
    return all(part not in sizes[:-1] for part in parts)


def applied(recipe: Recipe, overrides: Sequence[str]) -> Recipe:
    """The recipe with other values, checked.

    Raises:
        RecipeError: it cannot be.
    """
    plain = recipe.model_dump()
    for override in overrides:
        key, _, text = override.partition("=")
        section, _, name = key.partition(".")
        inner = plain[section]
        assert isinstance(inner, dict)
        if name == "method":
            registry = OPTIMIZERS if section == "optimizer" else QUANTIZERS
            known = registry.declared(text).config.model_fields
            plain[section] = {**{k: v for k, v in inner.items() if k in known}, "method": text}
        else:
            inner[name] = _value(text)
    return checked(plain)


def checked(plain: Mapping[str, Json]) -> Recipe:
    """The recipe of plain values.

    Raises:
        RecipeError: they are none.
    """
    try:
        recipe = Recipe.model_validate(plain)
    except ValidationError as error:
        raise RecipeError(str(error).splitlines()[0]) from None
    if problems := list(conflicts(recipe.model_dump(mode="json"), set())):
        raise RecipeError(problems[0].message, problems[0].key)
    return recipe


def _value(text: str) -> Json:
    if text in ("true", "false"):
        return text == "true"
    return int(text) if text.isdigit() else text
