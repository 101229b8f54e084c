"""What a base model writes from a few examples: candidates in a file that a killed command goes on with."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

from lrft.api.asking.writer import Writer
from lrft.api.transferring.record import Asked, Pool
from lrft.build.adapt import adapt
from lrft.build.dataset import read_renderer
from lrft.build.identify import identify_base
from lrft.build.job import subject
from lrft.build.teacher import bare_recipe
from lrft.data.few_shot import FewShot, folded
from lrft.data.rows import Rows
from lrft.evaluation.answers_file import AnswerLine, AnswersFile
from lrft.evaluation.progress import EvaluationBar
from lrft.evaluation.sampling import Sampling
from lrft.recipe.schema import Recipe
from lrft.registry.errors import UsageError
from lrft.training.device import make_accelerator


@dataclass(frozen=True)
class Candidate:
    """An answer of a base model.

    Attributes:
        order: in which the seeds were shown.
        text: the input that it is.
        why: it is none; empty where it is one.
    """

    order: list[int]
    text: str
    why: str


def base_of(recipe: Recipe, day: str) -> Recipe:
    """The model of a recipe before anything trains.

    Args:
        day: that chat templates are told.
    """
    bare = bare_recipe(recipe)
    model = bare.model.model_copy(update={"adapter": None, "head": None})
    return bare.model_copy(update={"model": model, "data": bare.data.model_copy(update={"date": day})})


def write_candidates(
    recipe: Recipe, task: FewShot, path: Path, count: int, sampling: Sampling, asked: Asked, trusted: bool
) -> None:
    """Ask a base model for so many inputs of a task.

    Args:
        recipe: of `base_of`, with a format.
        path: of the file of answers; those that are there stay.

    Raises:
        UsageError: the file holds other answers.
    """
    file = AnswersFile(path, AnswerLine)
    with EvaluationBar() as show:
        text = read_renderer(recipe, trusted)
        device = make_accelerator(recipe.train.device, recipe.model.dtype).device
        found = adapt(
            recipe, device=device, trust_remote_code=trusted, trains=False, sums=True, progress=show
        )
        found.model.hf.to(device)
        found.model.eval()
        about = identify_base(recipe.model, found.model)
        writer = Writer(subject(recipe, text, found.model, show), None, recipe.model.name, about)
        orders = orders_of(task, sampling, count)
        ids = [writer.ids(task.question(order, writer.takes_messages)) for order in orders]
        rows = Rows([{"order": order} for order in orders], "candidate", "")
        writer.answers(rows, ids, file, asked.max_new_tokens, sampling)


def orders_of(task: FewShot, sampling: Sampling, count: int) -> list[list[int]]:
    """In which order the seeds are shown for every candidate."""
    return [task.order(sampling.seed, number) for number in range(count)]


def read_candidates(task: FewShot, path: Path, count: int, sampling: Sampling) -> list[Candidate]:
    """The candidates that answers are; a seed, and what was there before, is none.

    Raises:
        UsageError: the file does not hold as many answers as were written.
    """
    orders, answers = orders_of(task, sampling, count), list(AnswersFile(path, AnswerLine).lines())
    if len(answers) != count:
        raise UsageError(
            f"{path}: holds {len(answers):,} answers where {count:,} were written; put them back, or begin anew in "
            "another folder"
        )
    seen = {folded(task.text(row)): "a seed" for row in task.seeds}
    found: list[Candidate] = []
    for order, line in zip(orders, answers, strict=True):
        text, why = task.written(line["output"], line["stopped"])
        if not why:
            why = seen.get(folded(text), "")
            seen.setdefault(folded(text), "a repetition")
        found.append(Candidate(order, text, why))
    return found


def pool(candidates: Collection[Candidate]) -> Pool:
    """What of an answer was an input, counted."""
    refused = Counter(one.why for one in candidates if one.why)
    return {
        "asked": len(candidates),
        "inputs": len(candidates) - refused.total(),
        "refused": dict(sorted(refused.items())),
    }


def told(refused: Pool) -> str:
    """Why answers were no inputs, in words."""
    return ", ".join(f"{count:,} {why}" for why, count in refused["refused"].items()) or "none was refused"
