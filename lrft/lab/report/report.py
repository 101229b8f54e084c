"""`lrft report`: runs as one page, and their curves as pictures."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TypedDict

from lrft.core import stop
from lrft.core.notes import say
from lrft.evaluation.subject import Progress, silent
from lrft.files.write import write_file
from lrft.lab.report.page import is_page, page_of
from lrft.lab.report.png import check_matplotlib, draw_all
from lrft.lab.report.read import find_runs, read_runs
from lrft.lab.spectra.inspect import INSPECTIONS, inspect
from lrft.registry.errors import DamagedFile, MissingFile, NotMergeable, UsageError
from lrft.training import checkpoint_folder
from lrft.training.folder import RunFolder


class RunSummary(TypedDict):
    """One run of a report."""

    run: str
    state: str
    step: int
    inspected: bool


class Report(TypedDict):
    """What was written, and of what."""

    file: str
    bytes: int
    pictures: list[str]
    runs: list[RunSummary]


def report(
    runs: Sequence[Path | str] = (),
    out: Path | str = "report.html",
    png: Path | None = None,
    inspected: bool = False,
    progress: Progress = silent,
) -> Report:
    """Write the page of some runs, by default of the latest, over an older page of the same name.

    Args:
        runs: run folders, or names under runs/.
        png: folder for the curves as PNG files.
        inspected: look first at the weights of runs whose newest checkpoint was not looked at.
        progress: hears (what, done, total) of an inspection.

    Raises:
        UsageError: a folder is no run, or cannot be read; or `out` is something else than a page.
        MissingExtra: `png` is asked for and matplotlib is not installed.
        WriteError: something cannot be written.
    """
    out = Path(out)
    if out.is_dir():
        raise UsageError(f"--out {out}: is a folder; give the file to write, such as {out / 'report.html'}")
    _check_older(out)
    if png is not None:
        check_matplotlib()
    folders = find_runs(runs)
    for folder in folders if inspected else ():
        _look(folder, progress)
    with stop.at_once():
        found = read_runs(folders)
        page = page_of(found)
    write_file(out, page, f"--out {out}")
    return {
        "file": str(out),
        "bytes": len(page.encode()),
        "pictures": [] if png is None else [str(path) for path in draw_all(found, png)],
        "runs": [
            {
                "run": run.name,
                "state": run.state.sentence,
                "step": run.metrics.step,
                "inspected": run.inspection is not None,
            }
            for run in found
        ],
    }


def _check_older(out: Path) -> None:
    """Refuse a name that somebody gave to something else."""
    if not os.path.lexists(out):
        return
    try:
        ours = is_page(out)
    except MissingFile:  # a link to nothing, which gives way
        return
    except DamagedFile:
        ours = False
    if not ours:
        raise UsageError(
            f"--out {out}: is there already and no page of lrft report; give another name, or remove it"
        )


def _look(folder: RunFolder, progress: Progress) -> None:
    """Inspect the newest good checkpoint, unless that was done or there is nothing to look at, which is told."""
    newest = checkpoint_folder.newest(folder.checkpoints, say)
    if newest is None:
        say(f"{folder.path}: has no checkpoint, so its weights cannot be looked at")
        return
    if (folder.path / INSPECTIONS / f"{newest.name}.json").is_file():
        return
    try:
        inspect(folder, progress=progress)
    except NotMergeable as error:
        say(str(error))
