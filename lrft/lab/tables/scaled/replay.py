"""Tables of the scaled tier: a claim, its criteria stated beforehand, a bed small enough to replay it, the verdict."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TypedDict

from lrft.lab.compare.comparison import Compared, compare_arms
from lrft.lab.compare.report import check_place, write_report
from lrft.lab.compare.settings import Settings
from lrft.lab.runs.executor import Executor
from lrft.lab.runs.outcome import held_out_rows, measured, result, share_to_reach
from lrft.lab.runs.planned import PlannedRun
from lrft.lab.runs.typed import command_line
from lrft.lab.tables.criterion import Criterion, stated
from lrft.lab.tables.record import ScaledRecord
from lrft.lab.tables.scaled.table import ScaledTable, load_scaled, scaled_arms
from lrft.lab.tables.verdict import Rows, Verdict, absent, judge_criterion, overall
from lrft.registry.errors import LrftError


def run_scaled(
    path: Path,
    out: Path,
    seeds: int | Sequence[int] | None = None,
    jobs: int = 1,
    overrides: Sequence[str] = (),
    report: Path | None = None,
    cluster: Executor | None = None,
    trust_remote_code: bool = False,
) -> ScaledRecord:
    """Replay a table and judge it; what is finished in `out` is kept. Returns what report.json holds.

    Args:
        out: folder of the runs; several tables may share it.
        report: folder of report.md, report.json and the plot; by default `out`.
        seeds: how many, or which; by default as many as the table states. With fewer nothing is decided.
        overrides: of all arms, such as other data or `train.device=cuda`; they are part of the record.
        cluster: where runs are made; None for processes of this machine.
        trust_remote_code: let code run that comes with a base model.

    Raises:
        RecipeError: the table or the recipe of an arm is not valid.
        UsageError: somebody else's files have the names of the report.
        LrftError, Interrupted: see `lrft.lab.runs.local.run_all`.
    """
    table = load_scaled(path)
    check_place(report or out)
    number = table.seeds if seeds is None else seeds
    chosen = list(range(number)) if isinstance(number, int) else list(number)
    settings = Settings(
        out,
        sorted(table.lr_grid),
        chosen,
        table.match,
        jobs,
        cluster=cluster,
        trust_remote_code=trust_remote_code,
    )
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
