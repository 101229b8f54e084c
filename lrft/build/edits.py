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

    Args:
        plan: plans a recipe anew.
        enough: stop at so many.
    """
    single = list(edits(recipe))
    found: list[Fitting] = []
    tried = 0
    for edit in _in_order(single):
        if len(found) >= enough or tried >= TRIES:
            break
        if any(known.edit.keys <= edit.keys for known in found):
            continue  # more of what was enough
        tried += 1
        try:
            total = plan(applied(recipe, edit.overrides))
        except RecipeError:
            continue
        if total <= limit:
            found.append(Fitting(edit, total))
    return found


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
