"""What the discriminator and the target train by: recipes put together from those of the run and of the target."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import yaml

from lrft.build.guess import guess
from lrft.data.example import Row
from lrft.data.rows import Rows
from lrft.recipe.load import LoadedRecipe, load_recipe
from lrft.recipe.schema import Recipe
from lrft.registry.axes import OBJECTIVES
from lrft.registry.errors import RecipeError
from lrft.registry.json import Json

REAL, WRITTEN = "real", "written"
LABELS = [WRITTEN, REAL]
JUDGES = "classify"  # the objective and the format of a text with a label
IMITATES = "distillation"
HELD_OUT = 0.1  # of the discriminator's texts
# Of the discriminator. The paper's are not known; these are what LoRA is often given.
RANK, RATE, EPOCHS, BATCH = 8, 2e-4, 3, 8


def judge_recipe(source: Recipe, seed: int, rows: Path) -> str:
    """The text of the discriminator's recipe: an adapter on the model of the run, with a head of two labels."""
    model = source.model.model_dump(mode="json", exclude_defaults=True)
    model = {key: value for key, value in model.items() if key not in ("adapter", "add_tokens", "resize")}
    settings = source.train
    made = {
        "model": {**model, "head": LABELS},
        "quantization": source.quantization.model_dump(mode="json"),
        "adapter": {"rank": RANK},
        "optimizer": {"lr": RATE},
        "objective": JUDGES,
        "data": {"train": str(rows), "format": JUDGES, "split": HELD_OUT, "too_long": "truncate_left"},
        "train": {
            "epochs": EPOCHS,
            "batch_size": BATCH,
            "max_length": settings.max_length,
            "device": settings.device,
            "seed": seed,
        },
        "eval": {"tasks": ["classification"], "at_end": True, "batch_tokens": source.eval.batch_tokens},
    }
    return yaml.safe_dump(made, sort_keys=False, allow_unicode=True)


def target_recipe(
    to: str | Path, overrides: Sequence[str], source: Recipe, more: Sequence[str] = ()
) -> LoadedRecipe:
    """The recipe of the target, by whose rows held-out rows and questions are read as the run reads them.

    Args:
        source: the recipe of the run.
        more: overrides that are the transfer's (`imitating`, `learning`).

    Raises:
        RecipeError: it reads rows otherwise, or is not valid.
    """
    own = load_recipe(to, overrides).recipe.data.format
    form = source.data.format
    assert form is not None, "a run records its format"
    if own is not None and own != form:
        raise RecipeError(
            f"is {own.method}, and the run reads {form.method}, whose rows are written; leave it out",
            "data.format",
        )
    written = json.dumps(form.model_dump(mode="json", exclude_unset=True))
    return load_recipe(to, [*overrides, f"data.format={written}", *more])


def learning(rows: Path, first: Row) -> list[str]:
    """What lets a recipe train on the rows that were written, which are read by their own format.

    Args:
        first: one of the rows.
    """
    read, _ = guess(Rows([first], str(rows), ""))
    train: dict[str, Json] = {"source": str(rows), "format": read.model_dump(mode="json")}
    return [f"data.train=[{json.dumps(train)}]"]


def imitating(recipe: Recipe, teacher: str | None) -> list[str]:
    """What makes an objective imitate a teacher: one that has a teacher keeps its settings.

    Args:
        teacher: whose distributions are imitated; None where texts are learnt.

    Raises:
        RecipeError: the objective cannot.
    """
    if "teacher" in type(recipe.objective).model_fields:
        if teacher is None or getattr(recipe.objective, "teacher", None) is not None:
            why = "only texts can be learnt here" if teacher is None else "the run is the teacher"
            raise RecipeError(
                f"{recipe.objective.method} has a teacher, and {why}; leave it out", "objective"
            )
        return [f"objective.teacher={json.dumps(teacher)}"]
    if teacher is None:
        return []
    if recipe.objective.method != Recipe.model_fields["objective"].default:
        raise RecipeError(
            f"{recipe.objective.method} learns texts and imitates no distribution; leave it out, or give --match text",
            "objective",
        )
    assert IMITATES in OBJECTIVES.names()
    return [f"objective={json.dumps({'method': IMITATES, 'teacher': teacher, 'weight': 1.0})}"]
