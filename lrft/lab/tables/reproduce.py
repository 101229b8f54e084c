"""`lrft reproduce`: tables of papers, ours beside the published numbers, in whatever way their tier asks for."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from lrft.core import stop
from lrft.core.notes import say
from lrft.evaluation.progress import EvaluationBar
from lrft.files.made_records import TableRecord as TableMade
from lrft.files.own import check_own
from lrft.files.write import write_file
from lrft.lab.models import Models
from lrft.lab.runs.executor import Executor
from lrft.lab.runs.where import place_runs
from lrft.lab.tables.exact.count import MISSED, Number, count_table
from lrft.lab.tables.exact.kept import Kept
from lrft.lab.tables.exact.load import load_table
from lrft.lab.tables.exact.report import markdown, record, tally, where_it_ran
from lrft.lab.tables.library import EXACT, FULL, SCALED, Entry, choose
from lrft.lab.tables.listing import said
from lrft.lab.tables.record import ExactRecord, Facts, FullRecord, ScaledRecord, TableRecord
from lrft.registry.errors import LrftError, ToleranceError, UsageError
from lrft.training.versions import environment

REPLAYS = "replays"  # below OUT: the trainings of every scaled table, which may share them


@dataclass(frozen=True)
class Options:
    """How tables are run.

    Attributes:
        seeds: of tables that train; by default as many as each states.
        jobs: trainings at a time.
        device: cpu or cuda, for tables that train.
        cluster: where what trains is run; None for processes of this machine. See `lrft.lab.runs.where.place_runs`.
        cluster_settings: of the cluster, as it names them.
        fresh: count rows of the exact tier anew, those that are kept too.
        trust_remote_code: let code run that comes with a base model.
    """

    seeds: Sequence[int] | None = None
    jobs: int = 1
    device: str | None = None
    cluster: str | None = None
    cluster_settings: Sequence[str] = ()
    fresh: bool = False
    trust_remote_code: bool = False

    @property
    def overrides(self) -> list[str]:
        """What the options change in every recipe that trains."""
        return [] if self.device is None else [f"train.device={self.device}"]


# A table in OUT -> its Markdown and its record.
Runner = Callable[[Entry], tuple[str, TableRecord]]


def reproduce(
    names: list[str], out: Path, tier: str | None = None, options: Options | None = None
) -> list[TableRecord]:
    """Count, replay or train the named tables, or all of a tier; writes OUT/NAME.md and NAME.json.

    What is finished in OUT is kept: rows of exact tables, trainings of the others.

    Raises:
        UsageError, RecipeError: a table is not there, or wrong; or somebody else's files have its names.
        ToleranceError: a number is further from the published one than its tolerance; the files are written.
    """
    options = options or Options()
    entries = choose(names, tier)
    _check(entries, options)
    for entry in entries:
        check_own(out, f"{entry.name}.json", TableMade, [f"{entry.name}.md"], "a table")
    executor = place_runs(options.cluster, options.cluster_settings, out, options.jobs)
    models, kept = Models(options.trust_remote_code), Kept(out, options.fresh)
    runners: dict[str, Runner] = {
        EXACT: partial(_count, models=models, kept=kept),
        SCALED: partial(_replay, out=out, options=options, cluster=executor),
        FULL: partial(_train, out=out, options=options, cluster=executor),
    }
    records: list[TableRecord] = []
    missed: list[str] = []
    for entry in entries:
        try:
            with stop.listening(f"what is finished in {out} is kept; the same command goes on"):
                text, found = runners[entry.tier](entry)
            _write(out, entry.name, text, found)
        except LrftError as error:
            error.record = records  # the tables before it are finished
            raise
        records.append(found)
        if "numbers" in found:
            missed += [
                f"{entry.name}: {n['row']}, {n['column']}: published {n['published']:g}, ours {n['ours']:g}"
                for n in found["numbers"]
                if n["verdict"] == MISSED
            ]
    if missed:
        raise ToleranceError(
            "further from the published number than the tolerance:\n" + "\n".join(missed), records
        )
    return records


def _count(entry: Entry, models: Models, kept: Kept) -> tuple[str, ExactRecord]:
    """A table of the exact tier."""
    began, reused = time.perf_counter(), kept.reused
    loaded = load_table(entry)
    numbers: list[Number] = []
    with EvaluationBar() as show:
        for number in count_table(loaded, models, partial(show, entry.name), kept):
            numbers.append(number)
    seconds, reused = round(time.perf_counter() - began, 1), kept.reused - reused
    rows = f"{reused} of {len(loaded.table.rows)} rows counted before"
    say(f"{entry.name}: {tally(numbers)} ({seconds} s{f', {rows}' if reused else ''})")
    facts: Facts = {"seconds": seconds, "rows_kept": reused, **environment()}
    return markdown(loaded, numbers) + where_it_ran(facts), record(loaded, numbers, facts)


def _replay(entry: Entry, out: Path, options: Options, cluster: Executor | None) -> tuple[str, ScaledRecord]:
    """A table of the scaled tier: a verdict against the claim is a result, and no error."""
    from lrft.lab.compare.report import body
    from lrft.lab.tables.scaled.replay import head_lines, run_scaled

    say(f"{entry.name}: replaying")
    found = run_scaled(
        entry.path,
        out / REPLAYS,
        options.seeds,
        options.jobs,
        options.overrides,
        report=out / entry.name,
        cluster=cluster,
        trust_remote_code=options.trust_remote_code,
    )
    say(f"{entry.name}: {found['verdict']}")
    lines = [f"# {found['title']}", "", *head_lines(found), "", *body(found)]
    return "\n".join(lines) + "\n", found


def _train(entry: Entry, out: Path, options: Options, cluster: Executor | None) -> tuple[str, FullRecord]:
    """A table of the full tier."""
    from lrft.lab.tables.full.report import full_markdown
    from lrft.lab.tables.full.results import run_full

    say(f"{entry.name}: training")
    found = run_full(
        entry.path,
        out / entry.name,
        seeds=options.seeds,
        jobs=options.jobs,
        overrides=tuple(options.overrides),
        cluster=cluster,
        trust_remote_code=options.trust_remote_code,
    )
    say(f"{entry.name}: {said(found)}")
    return full_markdown(found), found


def _check(entries: list[Entry], options: Options) -> None:
    """Refuse options that none of the tables has a use for.

    Raises:
        UsageError: names the option.
    """
    if any(entry.tier != EXACT for entry in entries):
        return
    for option, value in (
        ("--seeds", options.seeds),
        ("--device", options.device),
        ("--cluster", options.cluster),
    ):
        if value is not None:
            raise UsageError(f"{option}: tables of the exact tier train nothing; leave it out")


def _write(out: Path, name: str, text: str, values: TableRecord) -> None:
    """Both files, each whole or not at all, the record first: by it a later call knows both for a table's.

    Raises:
        WriteError: they cannot be written.
    """
    for file, content in ((f"{name}.json", json.dumps(values, indent=1) + "\n"), (f"{name}.md", text)):
        write_file(out / file, content, f"--out {out}: {file}")
