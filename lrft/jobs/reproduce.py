"""`lrft reproduce`: tables of papers, ours beside the published numbers."""

from __future__ import annotations

import json
import time
from functools import partial
from pathlib import Path
from typing import Any

from lrft.compare.scaled import load_scaled, run_scaled
from lrft.core.errors import ToleranceError, UsageError
from lrft.core.names import did_you_mean
from lrft.jobs.say import progress, say
from lrft.tables import load
from lrft.tables.count import MISSED, Models, Number, count_table
from lrft.tables.report import markdown, record, tally
from lrft.train.folder import environment


def reproduce(names: list[str], out: Path) -> list[dict[str, Any]]:
    """Count the named tables, or all; writes OUT/NAME.md and NAME.json.

    Raises:
        UsageError, RecipeError: a table is not there, or wrong.
        ToleranceError: a number is further from the published one than its tolerance; the files are written.
    """
    tables = [load.load_table(name) for name in names or load.names()]
    models, records = Models(), []
    missed: list[str] = []
    for loaded in tables:
        began = time.perf_counter()
        numbers: list[Number] = []
        with progress() as show:
            for number in count_table(loaded, models, partial(show, loaded.name)):
                numbers.append(number)
        seconds = round(time.perf_counter() - began, 1)
        say(f"{loaded.name}: {tally(numbers)} ({seconds} s)")
        facts = {"seconds": seconds, **environment()}
        records.append(record(loaded, numbers, facts))
        _write(out, loaded.name, markdown(loaded, numbers), records[-1])
        missed += [
            f"{loaded.name}: {n.row}, {n.column}: published {n.published:g}, ours {n.ours:g}"
            for n in numbers
            if n.verdict == MISSED
        ]
    if missed:
        raise ToleranceError("further from the published number than the tolerance:\n" + "\n".join(missed))
    return records


def replay(
    names: list[str], out: Path, *, seeds: int | None = None, jobs: int = 1, device: str | None = None
) -> list[dict[str, Any]]:
    """Train the named scaled tables, or all, in OUT/NAME, and judge each by the criterion it states.

    Runs that are finished are kept; a second call goes on where the first stopped.

    Raises:
        UsageError: there is no such scaled table.
    """
    known = load.scaled()
    for name in names:
        if name not in known:
            raise UsageError(f"no scaled table {name!r}{did_you_mean(name, known)}")
    overrides = [] if device is None else [f"train.device={device}"]
    records = []
    for name in names or list(known):
        records.append(run_scaled(known[name], out / name, seeds, jobs, overrides))
        say(f"{name}: {records[-1]['verdict']} (report in {out / name})")
    return records


def listing(out: Path) -> list[tuple[str, str, int, str]]:
    """Name, tier, rows (or arms) and the last verdict of every packaged table."""
    found: list[tuple[str, str, int, str]] = []
    for name in load.names():
        table = load.load_table(name).table
        last = out / f"{name}.json"
        verdicts = json.loads(last.read_text())["verdicts"] if last.is_file() else {}
        said = ", ".join(f"{count} {verdict}" for verdict, count in verdicts.items()) or "not run yet"
        found.append((name, table.tier, len(table.rows), said))
    for name, path in load.scaled().items():
        last = out / name / "report.json"
        said = json.loads(last.read_text())["verdict"] if last.is_file() else "not run yet"
        found.append((name, "scaled", len(load_scaled(path).arms), said))
    return found


def _write(out: Path, name: str, text: str, values: dict[str, Any]) -> None:
    out.mkdir(parents=True, exist_ok=True)
    (out / f"{name}.md").write_text(text, encoding="utf-8")
    (out / f"{name}.json").write_text(json.dumps(values, indent=1) + "\n", encoding="utf-8")
