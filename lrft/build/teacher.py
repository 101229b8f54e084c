"""The second model that an objective compares with: what a recipe names, and whether it fits the rows."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from lrft.build.rows import made_format
from lrft.data.formats._format import Format
from lrft.model.decisive import template_sum
from lrft.model.load import load_config, load_model
from lrft.model.rope import positions_of
from lrft.model.tokenizer import load_tokenizer
from lrft.recipe.embedding_clashes import embeds
from lrft.recipe.load import load_recipe
from lrft.recipe.schema import Recipe
from lrft.recipe.sections import ModelSection
from lrft.registry.axes import OBJECTIVES, QUANTIZERS
from lrft.registry.config import parse_choice
from lrft.registry.errors import CheckpointError, DamagedFile, RecipeError, UsageError
from lrft.training.folder import RUN, RunFolder, find
from lrft.training.relied import own_recipe

if TYPE_CHECKING:
    from lrft.build.text import Text

KEY = "objective.teacher"
NONE = "none"  # the storage that is none


@dataclass(frozen=True)
class Teacher:
    """What a recipe names, before its weights are read.

    Attributes:
        recipe: what its model is built from.
        run: the run that trained its adapter, standing for a checkpoint where one was named; None of a bare model.
    """

    name: str
    recipe: Recipe
    run: RunFolder | None


def find_teacher(recipe: Recipe, name: str) -> Teacher:
    """What the name says: a run, a recipe, or a model in the precision of this one.

    Raises:
        RecipeError: it is neither, or a recipe of what has to be trained first.
    """
    with told(name):
        path = Path(name)
        if path.suffix in (".yaml", ".yml"):
            theirs = load_recipe(path).recipe
            if theirs.model.adapter is not None or theirs.model.weights == "random":
                raise UsageError("is a recipe whose model is made by training; train it, and name the run")
            return Teacher(name, bare_recipe(theirs), None)
        run = path.parent if path.name == "adapter" and (path.parent / RUN).is_file() else path
        if path.is_dir() and not (path / "config.json").is_file():
            folder = find(run)
            if not (folder.path / RUN).is_file():
                raise UsageError("holds an adapter alone; name the run that trained it, or merge it")
            return Teacher(name, own_recipe(folder.path).recipe, folder)
        place, _, revision = (
            (name, "", "") if path.exists() or name.startswith("pkg:") else name.partition("@")
        )
        section = ModelSection(
            name=place, revision=revision or None, dtype=recipe.model.dtype, attention=recipe.model.attention
        )
        none = parse_choice(QUANTIZERS, NONE)
        return Teacher(
            name, bare_recipe(recipe.model_copy(update={"model": section, "quantization": none})), None
        )


def check_teacher(teacher: Teacher, recipe: Recipe, text: Text, trusted: bool) -> None:
    """Refuse a teacher that reads other tokens than these rows have, or learnt to predict others.

    Raises:
        RecipeError: says what differs.
    """
    theirs = teacher.recipe
    with told(teacher.name):
        if theirs.model.head is not None:
            raise UsageError("scores whole texts (model.head) and predicts no token; name a language model")
        if embeds(theirs.objective.method):
            raise UsageError("embeds texts and predicts no token; name a language model")
        positions = positions_of(load_config(theirs.model, trusted).get_text_config())
        if positions is not None and recipe.train.max_length > positions:
            raise UsageError(f"has {positions} positions; write train.max_length: {positions}, or less")
        tokenizer, _ = load_tokenizer(theirs.model, trusted, theirs.data.template)
        ours, others = text.tokenizer.get_vocab(), tokenizer.get_vocab()
        if ours != others:
            odd = next(token for token in (*ours, *others) if ours.get(token) != others.get(token))
            raise UsageError(
                f"has another vocabulary (token {odd!r} has id {others.get(odd)} there and {ours.get(odd)} here), and "
                "distributions are compared token by token; name a model with this tokenizer"
            )
        if teacher.run is None:
            return
        if text.renderer.template.used and template_sum(tokenizer) != template_sum(text.tokenizer):
            raise UsageError("was trained with another chat template; write its data.template here")
        if _learns_all(text.renderer.format) and not _learns_all(made_format(theirs)):
            raise UsageError(
                "learnt answers alone (data.format), and here every token is learnt; its predictions elsewhere were "
                "never trained, so use rows with answers, or a teacher that learnt whole texts"
            )


def check_teacher_of(recipe: Recipe, text: Text, trusted: bool) -> None:
    """The same of what the recipe's objective names, where it names one; no weight is read."""
    if (name := OBJECTIVES.get(recipe.objective.method)(recipe.objective).teacher_name) is not None:
        check_teacher(find_teacher(recipe, name), recipe, text, trusted)


def plan_teacher(recipe: Recipe, text: Text, trusted: bool) -> int:
    """`teacher_bytes`, once it is known to fit."""
    check_teacher_of(recipe, text, trusted)
    return teacher_bytes(recipe, trusted)


def teacher_bytes(recipe: Recipe, trusted: bool = False) -> int:
    """Bytes of the teacher's weights beside what trains, before anything is loaded; 0 where there is none."""
    name = OBJECTIVES.get(recipe.objective.method)(recipe.objective).teacher_name
    if name is None:
        return 0
    teacher = find_teacher(recipe, name)
    theirs = teacher.recipe
    same = ("name", "revision", "weights", "dtype", "experts")
    shared = all(getattr(theirs.model, key) == getattr(recipe.model, key) for key in same)
    if shared and theirs.quantization == recipe.quantization and not base_moves(recipe):
        return 0  # of its adapter alone, which is little
    hf = load_model(theirs.model, trust_remote_code=trusted, meta=True).hf
    return sum(parameter.nbytes for parameter in hf.parameters())


def base_moves(recipe: Recipe) -> bool:
    """Whether weights of the base change while it trains."""
    between = (recipe.restart, recipe.select, recipe.prune)
    return recipe.trainable.weights != "adapter" or any(part is not None for part in between)


def bare_recipe(recipe: Recipe) -> Recipe:
    """The recipe's model as it is before anything trains."""
    return recipe.model_copy(
        update={"adapter": None, "init": None, "restart": None, "select": None, "prune": None}
    )


def _learns_all(format: Format) -> bool:
    return "documents" in format.provides


@contextmanager
def told(name: str) -> Iterator[None]:
    """Say of whatever is wrong with it that it is the teacher's."""
    try:
        yield
    except RecipeError as error:
        raise RecipeError(f"{name}: {error.problems[0].message}", KEY) from error
    except (UsageError, CheckpointError, DamagedFile) as error:
        raise RecipeError(f"{name} {error}" if name not in str(error) else str(error), KEY) from error
