"""Tables of the scaled tier: a claim, its criteria stated beforehand, a bed small enough to replay it, the verdict."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from lrft.compare.command import command_line
from lrft.compare.comparison import Compared, compare_arms
from lrft.compare.outcome import value
from lrft.compare.plan import Arm, make_arm
from lrft.compare.report import write_report
from lrft.compare.verdict import Criterion, Verdict, overall, stated, verdict
from lrft.core.config import Annotated, Field, Literal, Section, model_validator
from lrft.core.errors import Problem, RecipeError
from lrft.recipe.document import parse, read_text
from lrft.recipe.tree import Place, dotted


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
    recipe: str = Field(min_length=1, description="recipe file relative to this one, or packaged name")
    overrides: list[str] = Field(default_factory=list, description="overrides of all arms, before their own")
    arms: list[ScaledArm] = Field(min_length=2)
    match: Literal["params", "memory", "steps"] = "steps"
    lr_grid: list[Annotated[float, Field(gt=0)]] = Field(min_length=1)
    seeds: int = Field(ge=2, description="pairs of runs that a verdict needs")
    criteria: list[Criterion] = Field(min_length=1)
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
        if len(set(self.lr_grid)) < len(self.lr_grid):
            raise ValueError("lr_grid: a rate is given twice")
        return self


def load_scaled(path: Path) -> ScaledTable:
    """A table file, checked strictly.

    Raises:
        RecipeError: with every problem found, each with its line and key.
    """
    root, problems = parse(read_text(path), Place(str(path), 1, path.parent))
    try:
        table = ScaledTable.model_validate(root.plain())
    except ValidationError as error:
        for one in error.errors():
            message = one["msg"].removeprefix("Value error, ")
            problems.append(root.nearest(*one["loc"]).problem(dotted(one["loc"]), message))
        raise RecipeError(problems) from None
    if problems:
        raise RecipeError(problems)
    return table


def scaled_arms(table: ScaledTable, path: Path, overrides: Sequence[str] = ()) -> list[Arm]:
    """The arms of a table with their checked recipes.

    Args:
        path: the table file, which recipes are relative to.
        overrides: of all arms, after everything in the table.

    Raises:
        RecipeError: the recipe of an arm is not valid.
    """
    arms = []
    for arm in table.arms:
        name = arm.recipe or table.recipe
        beside = path.parent / name
        together = [*table.overrides, *arm.overrides, *overrides]
        try:
            arms.append(make_arm(arm.label, beside if beside.is_file() else name, together, arm.shares_rate))
        except RecipeError as error:
            raise RecipeError(Problem("", f"arm {arm.label!r}: {error}", str(path))) from None
    return arms


def run_scaled(
    path: Path,
    out: Path,
    seeds: int | Sequence[int] | None = None,
    jobs: int = 1,
    overrides: Sequence[str] = (),
) -> dict[str, Any]:
    """Replay a table in `out` and judge it; what is finished there is kept. Returns what report.json holds.

    Args:
        seeds: how many, or which; by default as many as the table states. With fewer nothing is decided.
        overrides: of all arms, such as other data or `train.device=cuda`; they are part of the record.

    Raises:
        RecipeError: the table or the recipe of an arm is not valid.
        LrftError, Interrupted: see `lrft.compare.runs.run_all`.
    """
    table = load_scaled(path)
    number = table.seeds if seeds is None else seeds
    chosen = list(range(number)) if isinstance(number, int) else list(number)
    compared = compare_arms(
        scaled_arms(table, path, overrides),
        by=table.match,
        rates=sorted(table.lr_grid),
        seeds=chosen,
        out=out,
        jobs=jobs,
        command=command_line(),
    )
    record = _record(path.stem, table, compared, overrides)
    write_report(record, out, table.title, head_lines(record))
    return record


def judge(table: ScaledTable, compared: Compared) -> list[Verdict]:
    """The verdict on each criterion."""
    return [
        verdict(
            criterion,
            [value(run, criterion.metric) for run in compared.runs[criterion.arm]],
            [value(run, criterion.metric) for run in compared.runs[criterion.against]],
            table.seeds,
        )
        for criterion in table.criteria
    ]


def head_lines(record: dict[str, Any]) -> list[str]:
    """The claim, the verdict and its scale, as Markdown."""
    lines = [
        f"{record['paper']} Claim ({record['provenance']}): {record['claim']}",
        "",
        f"Verdict: **{record['verdict']}**. {record['scale']}",
        "",
        f"Bed: {record['bed']}",
        *([f"Changed for this replay: `{' '.join(record['overrides'])}`"] if record["overrides"] else []),
        "",
        "| criterion, stated beforehand | verdict | found |",
        "|---|---|---|",
    ]
    lines += [f"| {one['stated']} | {one['name']} | {one['reason']} |" for one in record["criteria"]]
    return [*lines, *(["", *(f"- {note}" for note in record["notes"])] if record["notes"] else [])]


def _record(name: str, table: ScaledTable, compared: Compared, overrides: Sequence[str]) -> dict[str, Any]:
    verdicts = judge(table, compared)
    kept = table.model_dump(
        include={"tier", "title", "paper", "claim", "provenance", "bed", "scale", "notes"}
    )
    return {
        "name": name,
        **kept,
        "overrides": list(overrides),
        "verdict": overall(verdicts),
        "criteria": [
            {"stated": stated(criterion), **criterion.model_dump(), **asdict(found)}
            for criterion, found in zip(table.criteria, verdicts, strict=True)
        ],
        **compared.record,
    }
