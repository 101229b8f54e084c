"""Configurations of a search as arms: which recipe each is, whether there is one, and what it costs at rest."""

from __future__ import annotations

import json
from collections.abc import Sequence
from itertools import product
from random import Random

from lrft.build.measured import Measured
from lrft.core.search import Genes
from lrft.lab.models import Models
from lrft.lab.runs.judged import judged_arm
from lrft.lab.runs.planned import Arm
from lrft.lab.search.space import Dimension, Space
from lrft.recipe.fields import slot_at
from lrft.recipe.load import load_recipe
from lrft.recipe.resolved import recipe_hash
from lrft.recipe.tree import shown
from lrft.registry.errors import LrftError, Problem, RecipeError
from lrft.registry.json import Json

DRAWN = (
    32  # configurations in which a value is looked for that is not possible beside the recipe's own values
)


class Arms:
    """The recipe of every configuration that is asked for, each read and counted once.

    Args:
        source: recipe file or packaged name.
        overrides: that hold for every arm.
        metric: what every arm takes at its last step.
        trusted: let code run that comes with the base model.

    Attributes:
        refused: configurations that are no valid recipe, or the recipe of another one -> why.
    """

    def __init__(
        self, source: str, overrides: Sequence[str], space: Space, metric: str, trusted: bool = False
    ) -> None:
        self.source, self.overrides, self.space, self.metric = source, tuple(overrides), space, metric
        self.models = Models(trusted)
        self.refused: dict[Genes, str] = {}
        self._arms: dict[Genes, Arm] = {}
        self._owners: dict[str, Genes] = {}

    def possible(self, genes: Genes) -> bool:
        """Whether it is a valid recipe, and not that of a configuration which was taken."""
        if genes in self.refused:
            return False
        try:
            arm = self.arm(genes)
            self.models.weigh(arm.recipe)
        except (LrftError, ValueError) as error:
            self.refused[genes] = str(error).splitlines()[0]
            return False
        return self._owners.get(recipe_hash(arm.recipe), genes) == genes

    def first_refusal(self) -> str:
        """Why the configuration that was asked for first cannot be trained; empty where it can."""
        return next(iter(self.refused.values()), "")

    def take(self, genes: Genes) -> Arm:
        """The arm of a configuration that is tried; another one with the same recipe is not possible from now on."""
        arm = self.arm(genes)
        self._owners[recipe_hash(arm.recipe)] = genes
        return arm

    def arm(self, genes: Genes) -> Arm:
        """The arm of a configuration.

        Raises:
            RecipeError: it is no valid recipe.
        """
        if genes not in self._arms:
            values = self.values(genes)
            label = ",".join(f"{key.rpartition('.')[2]}={_text(value)}" for key, value in values.items())
            overrides = [*self.overrides, *(f"{key}={json.dumps(value)}" for key, value in values.items())]
            self._arms[genes] = judged_arm(label, self.source, overrides, self.metric)
        return self._arms[genes]

    def cost(self, arm: Arm) -> Measured:
        """Counts and bytes before the first step."""
        return self.models.weigh(arm.recipe)

    def values(self, genes: Genes) -> dict[str, Json]:
        """Key -> value, without the keys that a method chosen by another key of the space does not have.

        Raises:
            RecipeError: a section that the space chooses is not valid.
        """
        return self._kept(self.space.values(genes))

    def _kept(self, values: dict[str, Json]) -> dict[str, Json]:
        found: dict[str, Json] = {}
        for key, value in values.items():
            if not self.space.sections_of(key) or self._has(key, found):
                found[key] = value
        return found

    def _has(self, key: str, values: dict[str, Json]) -> bool:
        written = [*self.overrides, *(f"{one}={json.dumps(value)}" for one, value in values.items())]
        plain = load_recipe(self.source, written).recipe.model_dump(mode="json")
        return slot_at(tuple(key.split(".")), plain) is not None

    def check(self) -> None:
        """Refuse values that no arm can have.

        Raises:
            RecipeError: every one of them, with its file, line and key.
        """
        load_recipe(
            self.source, self.overrides
        )  # what is wrong with the recipe itself is said as of the recipe
        problems = [
            problem
            for one in self.space.dimensions
            for genes in one.trials()
            if (problem := self._problem(one, genes))
        ]
        if problems:
            raise RecipeError(list({problem.key: problem for problem in reversed(problems)}.values())[::-1])

    def _problem(self, dimension: Dimension, genes: Genes) -> Problem | None:
        """What is wrong with a value wherever it was tried, as it is told beside the recipe's own values."""
        value = dimension.value(genes)
        first = self._refusal({dimension.key: value})
        sections = self.space.sections_of(dimension.key)
        if first is None or any(
            self._refusal(beside | {dimension.key: value}) is None for beside in _every(sections)
        ):
            return None
        rng = Random(0)
        for _ in range(DRAWN):
            drawn = self.space.values(tuple(gene.draw(rng) for gene in self.space.genes))
            try:
                kept = self._kept(drawn | {dimension.key: value})
            except RecipeError:
                continue
            if dimension.key in kept and self._refusal(kept) is None:
                return None
        return dimension.place.problem(dimension.key, f"{shown(value)}: {first}")

    def _refusal(self, values: dict[str, Json]) -> str | None:
        """Why the recipe is not valid with these values; None where it is."""
        written = [f"{key}={json.dumps(value)}" for key, value in values.items()]
        try:
            judged_arm("", self.source, [*self.overrides, *written], self.metric)
        except RecipeError as error:
            keys = [problem.key.removesuffix(".method") for problem in error.problems]
            place = next((place for place, key in enumerate(keys) if key in values), 0)
            message = error.problems[place].message
            return message if keys[place] in values else f"{keys[place]}: {message}"
        return None


def _every(sections: Sequence[Dimension]) -> list[dict[str, Json]]:
    """Every combination of what sections may be."""
    keys = [one.key for one in sections]
    options = [[one.value(genes) for genes in one.trials()] for one in sections]
    return [dict(zip(keys, chosen, strict=True)) for chosen in product(*options)] if keys else []


def _text(value: Json) -> str:
    """A value within a label: a method by its name, where it has settings with them."""
    if isinstance(value, str):
        return value
    return json.dumps(value, separators=(",", ":")).replace('"', "")
