"""Tables of the scaled tier: a claim, its criteria stated beforehand, a bed small enough to replay it, the verdict."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TypedDict

from lrft.lab.compare.command import command_line
from lrft.lab.compare.comparison import Compared, compare_arms
from lrft.lab.compare.report import write_report
from lrft.lab.compare.settings import Settings
from lrft.lab.runs.outcome import held_out_rows, measured, result, share_to_reach
from lrft.lab.runs.planned import Arm, PlannedRun, make_arm
from lrft.lab.tables.criterion import Criterion, stated
from lrft.lab.tables.file import lacks_method, read_table
from lrft.lab.tables.record import ScaledRecord
from lrft.lab.tables.verdict import Rows, Verdict, absent, judge_criterion, overall
from lrft.registry.config import Annotated, Field, Literal, Section, model_validator
from lrft.registry.errors import LrftError, Problem, RecipeError

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


def run_scaled(
    path: Path,
    out: Path,
    seeds: int | Sequence[int] | None = None,
    jobs: int = 1,
    overrides: Sequence[str] = (),
    report: Path | None = None,
) -> ScaledRecord:
    """Replay a table and judge it; what is finished in `out` is kept. Returns what report.json holds.

    Args:
        out: folder of the runs; several tables may share it.
        report: folder of report.md, report.json and the plot; by default `out`.
        seeds: how many, or which; by default as many as the table states. With fewer nothing is decided.
        overrides: of all arms, such as other data or `train.device=cuda`; they are part of the record.

    Raises:
        RecipeError: the table or the recipe of an arm is not valid.
        LrftError, Interrupted: see `lrft.lab.runs.local.run_all`.
    """
    table = load_scaled(path)
    number = table.seeds if seeds is None else seeds
    chosen = list(range(number)) if isinstance(number, int) else list(number)
    settings = Settings(out, sorted(table.lr_grid), chosen, by=table.match, jobs=jobs)
    arms = scaled_arms(table, path, overrides)
    compared = compare_arms(arms, settings, command=command_line(), alone=True)
    record = _record(path.stem, table, compared, overrides)
    write_report(record, report or out, table.title, head_lines(record))
    return record


def judge(table: ScaledTable, compared: Compared) -> list[Verdict]:
    """The verdict on each criterion."""
    return [_judge(criterion, table.seeds, compared) for criterion in table.criteria]


def _judge(criterion: Criterion, seeds: int, compared: Compared) -> Verdict:
    lacking = [label for label in (criterion.arm, criterion.against) if label not in compared.runs]
    if lacking:
        return absent(list(dict.fromkeys(lacking)))
    ours, theirs = compared.runs[criterion.arm], compared.runs[criterion.against]
    if criterion.reaches_within is not None:
        shares = [share_to_reach(a, b, criterion.metric) for a, b in zip(ours, theirs, strict=True)]
        within = criterion.model_copy(update={"at_most_ratio": criterion.reaches_within, "metric": "share"})
        return judge_criterion(within, shares, [None if share is None else 1.0 for share in shares], seeds)
    try:
        return judge_criterion(
            criterion,
            [measured(run, criterion.metric) for run in ours],
            [measured(run, criterion.other_metric) for run in theirs],
            seeds,
            rows_of(ours, theirs),
        )
    except ValueError as error:
        raise LrftError(f"criterion on {criterion.metric} of {criterion.arm}: {error}") from None


def rows_of(arm: Sequence[PlannedRun], against: Sequence[PlannedRun]) -> Rows | None:
    """The held-out rows of two arms at the seeds that both finished; None where a run did not keep them."""
    pairs = [
        (held_out_rows(a), held_out_rows(b))
        for a, b in zip(arm, against, strict=True)
        if result(a) and result(b)
    ]
    found = [(a, b) for a, b in pairs if a is not None and b is not None]
    if not found or len(found) < len(pairs):
        return None
    return Rows([a[0] for a, _ in found], [b[0] for _, b in found], found[0][0][1])


def head_lines(record: ScaledRecord) -> list[str]:
    """The claim, the verdict and its scale, as Markdown."""
    lines = [
        f"{record['paper']} Claim ({record['provenance']}): {record['claim']}",
        "",
        f"Verdict: **{record['verdict']}**{_waiting(record)}. {record['scale']}",
        "",
        f"Bed: {record['bed']}",
        *([f"Changed for this replay: `{' '.join(record['overrides'])}`"] if record["overrides"] else []),
        "",
        "| criterion, stated beforehand | verdict | found |",
        "|---|---|---|",
    ]
    lines += [f"| {one['stated']} | {one['name']} | {one['reason']} |" for one in record["criteria"]]
    return [*lines, *(["", *(f"- {note}" for note in record["notes"])] if record["notes"] else [])]


def _waiting(record: ScaledRecord) -> str:
    """That a verdict leaves out arms whose method lrft does not have."""
    lacking = record.get("absent")
    return f", as far as it can be judged: {', '.join(lacking)} wait for a method" if lacking else ""


def _record(name: str, table: ScaledTable, compared: Compared, overrides: Sequence[str]) -> ScaledRecord:
    verdicts = judge(table, compared)
    return {
        "name": name,
        "title": table.title,
        "paper": table.paper,
        "claim": table.claim,
        "provenance": table.provenance,
        "tier": table.tier,
        "bed": table.bed,
        "scale": table.scale,
        "notes": table.notes,
        "overrides": list(overrides),
        "absent": [arm.label for arm in table.arms if arm.label not in compared.runs],
        "verdict": overall(verdicts),
        "criteria": [
            {"stated": stated(criterion), **criterion.model_dump(), **asdict(found)}
            for criterion, found in zip(table.criteria, verdicts, strict=True)
        ],
        **compared.record,
        "arms": [{**row, **_written(table, row["label"])} for row in compared.record["arms"]],
    }


class Written(TypedDict):
    """An arm as its table has it."""

    recipe: str
    overrides: list[str]


def _written(table: ScaledTable, label: str) -> Written:
    """Recipe and overrides of an arm as the table has them, without the folders of this machine."""
    arm = next(arm for arm in table.arms if arm.label == label)
    return {"recipe": arm.recipe or table.recipe, "overrides": [*table.overrides, *arm.overrides]}
