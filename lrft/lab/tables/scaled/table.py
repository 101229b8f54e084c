"""A table of the scaled tier as its file has it: a claim, the bed to replay it on, arms and criteria."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from lrft.lab.runs.planned import Arm, make_arm
from lrft.lab.tables.criterion import Criterion
from lrft.lab.tables.file import lacks_method, read_table
from lrft.registry.config import Annotated, Field, Literal, Section, model_validator
from lrft.registry.errors import Problem, RecipeError

DATA = "$LRFT_DATA"

BED = "bed:"  # a recipe of a bed that scripts/make_beds makes


class ScaledArm(Section):
    """One arm: the table's recipe, or its own, with overrides."""

    label: str = Field(min_length=1)
    recipe: str | None = Field(
        None, description="recipe file relative to this one, or packaged name; by default the table's"
    )
    overrides: list[str] = Field(default_factory=list, description="`key.sub=value`, after the table's")
    shares_rate: str | None = Field(
        None, description="arms with the same word here are tuned together and share one rate"
    )


class ScaledTable(Section):
    """A whole table file of the scaled tier."""

    title: str = Field(min_length=1)
    paper: str = Field(min_length=1)
    claim: str = Field(min_length=1, description="what the paper says, in one sentence")
    provenance: Literal["T", "R", "J", "A", "2"] = Field(description="where the claim was read")
    tier: Literal["scaled"]
    bed: str = Field(min_length=1, description="model, data and length of the replay")
    scale: str = Field(min_length=1, description="what so small a bed cannot say; printed with the verdict")
    recipe: str = Field(
        min_length=1, description="recipe file relative to this one, packaged name, or bed:NAME/FILE"
    )
    overrides: list[str] = Field(default_factory=list, description="overrides of all arms, before their own")
    arms: list[ScaledArm] = Field(min_length=1)
    match: Literal["params", "memory", "steps"] = "steps"
    lr_grid: list[Annotated[float, Field(gt=0)]] = Field(min_length=1)
    seeds: int = Field(
        ge=1, description="pairs of runs that a verdict needs; one is enough for `everywhere` alone"
    )
    criteria: list[Criterion] = Field(min_length=1)
    cost: str = Field("", description="how long all of it takes, and on what")
    notes: list[str] = Field(default_factory=list)

    @model_validator(mode="after")
    def _arms_exist(self) -> ScaledTable:
        labels = [arm.label for arm in self.arms]
        if len(set(labels)) < len(labels):
            raise ValueError("two arms have the same label; every label names one arm")
        for criterion in self.criteria:
            for label in (criterion.arm, criterion.against):
                if label not in labels:
                    raise ValueError(f"criteria: no arm {label!r}; arms: {', '.join(labels)}")
        if self.seeds < 2 and not all(criterion.everywhere for criterion in self.criteria):
            raise ValueError("seeds: one seed decides only criteria that are `everywhere`; write 2 or more")
        if len(set(self.lr_grid)) < len(self.lr_grid):
            raise ValueError("lr_grid: a rate is given twice")
        return self


def load_scaled(path: Path) -> ScaledTable:
    """A table file, checked strictly.

    Raises:
        RecipeError: with every problem found, each with its line and key.
    """
    return read_table(path, ScaledTable)


def scaled_arms(table: ScaledTable, path: Path, overrides: Sequence[str] = ()) -> list[Arm]:
    """The arms of a table with their checked recipes; those that need a method lrft does not have are left out.

    Args:
        path: the table file, which recipes are relative to.
        overrides: of all arms, after everything in the table.

    Raises:
        RecipeError: the recipe of an arm is not valid.
    """
    arms = []
    for arm in table.arms:
        try:
            together = [*map(expanded, (*table.overrides, *arm.overrides)), *overrides]
            source = located(arm.recipe or table.recipe, path)
            arms.append(make_arm(arm.label, source, together, arm.shares_rate))
        except RecipeError as error:
            if lacks_method(error):
                continue
            raise RecipeError(Problem("", f"arm {arm.label!r}: {error}", str(path))) from None
    return arms


def located(name: str, table: Path) -> str | Path:
    """A recipe that a table names: of a bed, beside the table, or a packaged one.

    Raises:
        RecipeError: the bed has not been made.
    """
    if name.startswith(BED):
        bed, _, file = name.removeprefix(BED).partition("/")
        root = Path(os.environ.get("LRFT_BEDS", "beds"))
        if not (root / bed / file).is_file():
            raise RecipeError(
                f"the bed {bed!r} is not under {root}/ ({file} is missing); make it with `scripts/make_beds {root}`, "
                "or set LRFT_BEDS to where it is"
            )
        return root / bed / file
    beside = table.parent / name
    return beside if beside.is_file() else name


def expanded(override: str) -> str:
    """An override with the folder of real data sets put in.

    Raises:
        RecipeError: it is not known where they are.
    """
    if DATA in override and DATA.removeprefix("$") not in os.environ:
        raise RecipeError(
            f"{override!r} needs real data sets; set {DATA.removeprefix('$')} to the folder that holds them"
        )
    return override.replace(DATA, os.environ.get(DATA.removeprefix("$"), ""))
