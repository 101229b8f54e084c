"""A target's rows and its sources' as they are measured for an order, with scores by all rows and without some."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from lrft.api.data.measure import Measuring, Part
from lrft.build.classes import read_classes
from lrft.build.dataset import read_text
from lrft.build.guess import with_format
from lrft.build.text import Text, check_text
from lrft.core import stop
from lrft.core.transfer import TransferEstimate
from lrft.data.encoded import Encoded
from lrft.data.rows import Rows
from lrft.evaluation.progress import EvaluationBar
from lrft.recipe.load import as_loaded
from lrft.recipe.schema import Recipe
from lrft.registry.errors import DataError, NumericalError, RecipeError
from lrft.training.folder import RUN, find, places
from lrft.training.relied import own_recipe

GROUPS = 10  # of target rows, each left out once for the intervals
FEWEST = 2 * GROUPS  # target rows
BASE = "(none: the base)"


@dataclass(frozen=True)
class Scored:
    """A source's score, and those without each of the groups of target rows."""

    name: str
    rows: int | None
    score: float
    without: Sequence[float]


@dataclass
class Ranking:
    """What every source of one target is measured with.

    Attributes:
        out: files of what was measured stand beside it.
        most: rows of the target, and of each source; more are drawn from by `seed`.
        used: rows of the target that the scores are of.
    """

    made: TransferEstimate
    out: Path
    recipe: Recipe
    text: Text
    most: int
    seed: int
    trusted: bool
    show: EvaluationBar
    used: int = 0

    def by_rows(self, sources: Sequence[Path | str], names: Sequence[str]) -> tuple[None, list[Scored]]:
        """By the training rows of every source, all of them read and measured as the target's are."""
        target = self._measured(self.text, *usable_rows(self.text), "target")
        self._check_count(len(target))
        scored = []
        for source, name in zip(sources, names, strict=True):
            text = read_whole(_as_target(self._recipe_of(source), self.recipe), self.trusted, self.show)
            features = self._measured(text, *usable_rows(text), name)

            def score(kept: Tensor, features: Tensor = features) -> float:
                return self.made.of_rows(features, target[kept])

            scored.append(self._score(str(source), len(features), score))
        return None, scored

    def by_answers(
        self, sources: Sequence[Path | str], names: Sequence[str]
    ) -> tuple[list[str], list[Scored]]:
        """By the target's questions as the model of every source, and the base itself, sees them."""
        rows, encoded = draw_rows(*usable_rows(self.text), self.most, self.seed)
        found = read_classes(self.text, rows, encoded, "data.train")
        self._check_count(len(found.gold))
        gold = torch.tensor(found.gold)
        scored = []
        for source, name in zip([None, *sources], ["base", *names], strict=True):
            states = self._features(self.text, found.rows, found.prompts, name, source)

            def score(kept: Tensor, states: Tensor = states) -> float:
                return self.made.of_answers(states[kept], gold[kept])

            scored.append(self._score(BASE if source is None else str(source), None, score))
        return list(found.names), scored

    def _measured(self, text: Text, rows: Rows, encoded: Sequence[Encoded], name: str) -> Tensor:
        rows, encoded = draw_rows(rows, encoded, self.most, self.seed)
        return self._features(text, rows, encoded, name, None)

    def _features(
        self, text: Text, rows: Rows, encoded: Sequence[Encoded], name: str, run: Path | str | None
    ) -> Tensor:
        part = Part(encoded, rows.where, self.out.with_name(f"{self.out.stem}.{name}.jsonl"))
        runs = () if run is None else (run,)
        measuring = Measuring(self.recipe, text, self.made, runs, self.seed, self.trusted, self.show)
        (features,) = measuring.features([part])
        assert features is not None, "an estimate needs something of every row"
        return features

    def _recipe_of(self, source: Path | str) -> Recipe:
        loaded = own_recipe(find(source).path) if is_run(source) else as_loaded(source)
        return with_format(loaded).recipe

    def _check_count(self, count: int) -> None:
        if count < FEWEST:
            raise DataError(f"data.train: {count} rows can be looked at, and an order takes {FEWEST}")
        self.used = count

    def _score(self, name: str, rows: int | None, score: Callable[[Tensor], float]) -> Scored:
        order = torch.randperm(self.used, generator=torch.Generator().manual_seed(self.seed))
        without = []
        for group in range(GROUPS):
            stop.poll()
            kept = torch.cat([order[k::GROUPS] for k in range(GROUPS) if k != group])
            without.append(score(kept.sort().values))
        found = Scored(name, rows, score(torch.arange(self.used)), without)
        if not all(map(math.isfinite, (found.score, *found.without))):
            raise NumericalError(
                f"--source {name}: its score is no finite number, so it has no place in an order"
            )
        return found


def is_run(source: Path | str) -> bool:
    """Whether it is the folder of a run and not a recipe."""
    return any((path / RUN).is_file() for path in places(source))


def read_whole(recipe: Recipe, trusted: bool, show: EvaluationBar) -> Text:
    """The rows of a recipe, each in one piece."""
    if recipe.data.too_long == "windows":
        raise RecipeError("a row in several windows is none that is measured; write drop", "data.too_long")
    text = read_text(recipe, trust_remote_code=trusted, progress=show)
    check_text(text, recipe)
    return text


def _as_target(source: Recipe, target: Recipe) -> Recipe:
    """The source's rows for the target's model."""
    model = target.model.model_copy(update={"head": source.model.head})
    return source.model_copy(update={"model": model})


def usable_rows(text: Text) -> tuple[Rows, list[Encoded]]:
    """The training rows with something to learn, each one text."""
    rows, encoded = text.learnt()
    if any(row.parts for row in encoded):
        raise RecipeError("rows of pairs are two texts each, and an order takes rows of one", "data.format")
    return rows, encoded


def draw_rows(rows: Rows, encoded: Sequence[Encoded], most: int, seed: int) -> tuple[Rows, Sequence[Encoded]]:
    """No more than so many of the rows, in their order."""
    if len(rows) <= most:
        return rows, encoded
    kept = sorted(random.Random(seed).sample(range(len(rows)), most))
    return rows.chosen(kept), [encoded[k] for k in kept]
