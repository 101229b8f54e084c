"""Where runs are started, and what is asked of a started one; the files that every run is given."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

from lrft.files.write import write_file
from lrft.lab.runs.planned import PlannedRun
from lrft.recipe.resolved import resolved


class Handle(Protocol):
    """A run that was started."""

    run: PlannedRun
    log: Path

    @property
    def ended(self) -> bool: ...

    @property
    def exit_code(self) -> int:
        """Of a run that has ended; -N is signal N."""

    @property
    def seconds(self) -> float:
        """Since it was started."""

    def last_line(self) -> str:
        """The error that the run ended in, or the last thing it said."""

    def stop(self) -> None:
        """Ask it to save and stop."""

    def kill(self) -> None:
        """End it as it is."""


class Executor(Protocol):
    """Where runs are started. `pause` is how many seconds pass between looks at them."""

    name: str
    pause: float

    def start(self, run: PlannedRun) -> Handle: ...


def prepared(run: PlannedRun) -> tuple[Path, Path]:
    """The written recipe and the empty log of a run.

    Raises:
        WriteError: the folder of the comparison cannot be written.
    """
    root, log = run.folder.absolute().parent.parent, log_file(run)
    recipe = root / "recipes" / f"{run.folder.name}.yaml"
    write_file(recipe, resolved(run.recipe), f"--out {root}: recipes/{recipe.name}")
    write_file(log, "", f"--out {root}: logs/{log.name}")
    return recipe, log


def log_file(run: PlannedRun) -> Path:
    """Where what the run prints goes."""
    return run.folder.absolute().parent.parent / "logs" / f"{run.folder.name}.log"


def last_line(log: Path) -> str:
    """The error in a log, or its last line."""
    lines = [line.strip() for line in log.read_text(errors="replace").splitlines() if line.strip()]
    errors = [line.removeprefix("error: ") for line in lines if line.startswith("error: ")]
    return (errors or lines or ["it said nothing"])[-1]
