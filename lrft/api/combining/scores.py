"""A combination scored beside its parents and the base, on the same rows and the same base."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch

from lrft.api.combining.parents import Parent
from lrft.build.scoring import subject, tasks_of
from lrft.core.adapted import adapted, adapters_off
from lrft.core.combine import Part
from lrft.evaluation.progress import EvaluationBar
from lrft.evaluation.run import evaluate_tasks, metrics_of
from lrft.export.pairs import Pair
from lrft.export.served import with_pairs
from lrft.registry.errors import UsageError

if TYPE_CHECKING:
    from lrft.api.combining.folder import Made

BASE, RESULT = "base", "combined"


def score_all(
    made: Made, parents: Sequence[Parent], limit: int | None
) -> dict[str, dict[str, dict[str, float]]]:
    """Label -> task -> metrics of the base, every parent and the result, on the same rows and the same base."""
    recipe, model = made.recipe, made.adaptation.model
    if not recipe.eval.tasks and not recipe.data.holds_out:
        raise UsageError(
            "--eval: the recipe names no task and no data.eval; add one to it, or leave --eval out"
        )
    found: dict[str, dict[str, dict[str, float]]] = {}
    with EvaluationBar() as show:
        target = subject(recipe, made.text, model, show)
        rows = limit or recipe.eval.limit
        for label, pairs in [(BASE, {}), *((one.name, pairs_of(one.parts)) for one in parents)]:
            with standing_in(made, pairs):
                found[label] = metrics_of(evaluate_tasks(target, tasks_of(recipe), rows, None, label))
        found[RESULT] = metrics_of(evaluate_tasks(target, tasks_of(recipe), rows, None, RESULT))
    return found


def pairs_of(parts: Mapping[str, Part]) -> dict[str, Pair]:
    """Layer -> its change as a pair; of a dense one with an identity for B."""
    return {
        name: Pair(part.A, part.B, part.scale)
        if part.dense is None
        else Pair(part.dense, torch.eye(part.dense.shape[0]))
        for name, part in parts.items()
    }


@contextmanager
def standing_in(made: Made, pairs: Mapping[str, Pair]) -> Iterator[None]:
    """Let the model compute with these changes where its own are."""
    model = made.adaptation.model
    with adapters_off(model), with_pairs(adapted(model.hf), pairs, model.device):
        yield
