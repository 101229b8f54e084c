"""The training rows cut into steps, and how many of these there may be."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import replace
from math import ceil
from typing import TYPE_CHECKING, Protocol

from lrft.core.privacy import Secret
from lrft.core.run import Run
from lrft.data.alternating import Alternating
from lrft.data.mix import Mixture
from lrft.data.poisson import PoissonData
from lrft.data.steps import Shape, StepBatches, TrainData
from lrft.data.tasks import TasksInTurn
from lrft.recipe.length import length_problems
from lrft.recipe.schema import Recipe
from lrft.registry.axes import OBJECTIVES
from lrft.registry.config import DrawingConfig
from lrft.registry.errors import DataError, RecipeError

if TYPE_CHECKING:
    from lrft.build.text import Text


def train_data(
    recipe: Recipe,
    text: Text,
    world: int = 1,
    rank: int = 0,
    packing: bool | None = None,
    join: bool = False,
    began: int | None = None,
    secret: Secret | None = None,
) -> TrainData:
    """The training rows cut into steps, for process `rank` of `world`; source by source where they are tasks.

    Where the model draws the answers to learn, a row is a prompt: rows are not put together before there are answers.

    Args:
        packing: whether rows are packed, once it was tried on the model; by default as the recipe has it.
        join: whether the rows of a micro-batch are joined to one without padding, once that was tried.
        began: how many processes the run began with: its steps keep their rows, however many there are now.
        secret: of a private recipe, which draws the rows of its steps; by default the recipe's own.

    Raises:
        DataError: several sources of a private recipe.
    """
    if recipe.privacy is not None:
        return _private(recipe, text, secret)
    settings, draws = recipe.train, drawing(recipe)
    if draws is not None:
        packing, join = False, False

    def cut(mixture: Mixture | None) -> TrainData:
        data = TrainData(
            text.train,
            batch_size=settings.batch_size,
            accumulation=settings.gradient_accumulation,
            max_length=settings.max_length,
            packing=settings.packing is not False if packing is None else packing,
            seed=settings.seed,
            pad_id=text.pad_id,
            join=join,
            world=world,
            rank=rank,
            mixture=mixture,
            repeats=1 if draws is None else draws.updates,
        )
        data.group = settings.gradient_accumulation * (began or world)
        return data

    mixture = text.mixture
    if mixture is None or recipe.data.mix.order == "mixed":
        return cut(mixture)
    apart = [cut(mixture.only(place)) for place in mixture.places]
    kind = TasksInTurn if recipe.data.mix.order == "in_turn" else Alternating
    data = kind(apart, mixture)
    data.total_steps(settings.max_steps, settings.epochs)
    return data


def _private(recipe: Recipe, text: Text, secret: Secret | None) -> PoissonData:
    assert recipe.privacy is not None, "looked at"
    settings = recipe.train
    if text.mixture is not None:
        raise DataError(
            "data.train: the accounting of privacy knows one source, of which every row is as likely as the others; "
            "give one"
        )
    return PoissonData(
        text.train,
        expected=settings.batch_size * settings.gradient_accumulation,
        secret=secret or Secret(recipe.privacy.seed),
        max_length=settings.max_length,
        seed=settings.seed,
        pad_id=text.pad_id,
    )


def drawing(recipe: Recipe) -> DrawingConfig | None:
    """The settings of the objective, where it learns from answers that the model draws."""
    return recipe.objective if isinstance(recipe.objective, DrawingConfig) else None


def rows_of_a_pass(recipe: Recipe) -> int:
    """Rows of the data in a micro-batch: of a private step one, whose gradient is bounded by itself."""
    return recipe.train.batch_size if recipe.privacy is None else 1


def full_shape(recipe: Recipe, documents: int = 1) -> Shape:
    """Of a micro-batch whose rows are one document of `train.max_length` each, or `documents` of them."""
    rows, length = rows_of_a_pass(recipe) * documents, recipe.train.max_length
    return Shape(rows, length, (length,) * rows)


def documents_of_a_row(recipe: Recipe) -> int:
    """How many documents of a micro-batch are of one row of the data."""
    draws = drawing(recipe)
    if draws is not None:
        return draws.group
    one = OBJECTIVES.declared(recipe.objective.method)
    return 2 if {"pairs", "replies"} & (one.requires | one.provides) else 1


def shapes_of(recipe: Recipe, data: TrainData) -> Iterator[Shape]:
    """The shapes of the first epoch's micro-batches; of answers that are still to be drawn, as long as they may be."""
    draws = drawing(recipe)
    other = max(data.lengths) if draws is not None and draws.redraws else 0
    if "rewords" in OBJECTIVES.declared(recipe.objective.method).provides:
        other = recipe.train.max_length  # what is asked about a row may be longer than the row
    for shape in data.shapes(0):
        yield shape if draws is None else _drawn(shape, draws, recipe.train.max_length, other)


def _drawn(shape: Shape, draws: DrawingConfig, longest: int, other: int) -> Shape:
    """A prompt is no longer than its row, or than one of `other` tokens that may replace it."""
    lengths = (min(max(tokens, other) + draws.max_new_tokens, longest) for tokens in shape.documents)
    documents = tuple(length for length in lengths for _ in range(draws.group))
    return Shape(len(documents), max(documents), documents)


class Steps(Protocol):
    """What makes the steps of a run, from one on and before another, for a model on a device of this type."""

    def between(self, first: int, end: int, device: str) -> Generator[StepBatches, None, None]: ...


def steps_left(
    run: Run, end: int, made: Steps, whole: Callable[[], TrainData]
) -> Generator[StepBatches, None, None]:
    """The steps from where a run is on, before `end`.

    Args:
        whole: the same rows as a single process sees them.
    """
    if not run.team.in_step:
        return made.between(run.step, end, run.device.type)
    assert isinstance(made, TrainData), "what goes in step has its rows before"
    return (in_step(made, one, step) for one in [whole()] for step in range(run.step, end))


def first_rows(recipe: Recipe, text: Text) -> Mixture | None:
    """How sources share the rows that are there before training: of tasks in turn, those of the first alone."""
    mixture = text.mixture
    return mixture.only(0) if mixture is not None and recipe.data.mix.order == "in_turn" else mixture


def in_step(data: TrainData, whole: TrainData, step: int) -> StepBatches:
    """Step `step` of a process that makes as many passes as every other, with one beyond the step's where it has fewer.

    Args:
        whole: the same rows as a single process sees them.
    """
    batches = data.at(step)
    passes = ceil(batches.micro_batch_count / data.world)
    company = [] if len(batches.micro_batches) == passes else whole.at(step).micro_batches[:1]
    return replace(batches, micro_batches=[*batches.micro_batches, *company])


def possible_steps(recipe: Recipe, text: Text, world: int = 1, began: int | None = None) -> list[int]:
    """Steps of the run, packed and not where only the model can tell which it will be."""
    settings = recipe.train
    packings = [True, False] if settings.packing is None else [settings.packing]
    cut = [train_data(recipe, text, world, packing=packing, began=began) for packing in packings]
    return [data.total_steps(settings.max_steps, settings.epochs) for data in cut]


def check_steps(recipe: Recipe, possible: Sequence[int], ranks: Sequence[int] = ()) -> None:
    """Refuse settings that fit into none of these lengths of the run.

    Raises:
        RecipeError: with every setting that does not fit into the first.
    """
    problems = [length_problems(recipe, steps, ranks) for steps in possible]
    if all(problems):
        raise RecipeError(problems[0])
