"""Where the work of runs is started, and what is asked of it once it is; the files that it is given."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from lrft.files.write import write_file
from lrft.lab.runs.planned import PlannedRun
from lrft.recipe.document import parse
from lrft.recipe.resolved import resolved
from lrft.recipe.tree import Place
from lrft.registry.errors import UsageError
from lrft.registry.json import Json


@dataclass(frozen=True)
class Work:
    """One process that a run needs: its training, or the scoring of what it trained.

    Attributes:
        name: of its files; no other work of the run has it.
        prepare: writes what the process reads, and gives its command.
    """

    run: PlannedRun
    name: str
    prepare: Callable[[], list[str]]

    @property
    def log(self) -> Path:
        """Where what the process prints goes."""
        return self.run.folder.absolute().parent.parent / "logs" / f"{self.name}.log"

    def begin(self) -> list[str]:
        """The command, its log made empty.

        Raises:
            WriteError: the folder of the runs cannot be written.
        """
        command = self.prepare()
        write_file(self.log, "", f"--out {self.log.parent.parent}: logs/{self.log.name}")
        return command


class Handle(Protocol):
    """Work that was started."""

    work: Work

    @property
    def ended(self) -> bool: ...

    @property
    def exit_code(self) -> int:
        """Of work that has ended; -N is signal N."""

    @property
    def seconds(self) -> float:
        """Since it was started."""

    def last_line(self) -> str:
        """The error that it ended in, or the last thing it said."""

    def stop(self) -> None:
        """Ask it to save and stop."""

    def kill(self) -> None:
        """End it as it is."""


class Executor(Protocol):
    """Where work is started: processes here (`local.py`), jobs of submitit (`cluster.py`), tasks of Ray (`on_ray.py`).

    Sweeps, comparisons, searches and tables know no other difference between them.

    Attributes:
        pause: seconds between looks at what was started.
    """

    name: str
    pause: float

    def start(self, work: Work) -> Handle: ...


def write_recipe(run: PlannedRun) -> Path:
    """The written recipe of a run.

    Raises:
        WriteError: the folder of the comparison cannot be written.
    """
    root = run.folder.absolute().parent.parent
    recipe = root / "recipes" / f"{run.folder.name}.yaml"
    write_file(recipe, resolved(run.recipe), f"--out {root}: recipes/{recipe.name}")
    return recipe


def last_line(log: Path) -> str:
    """The error in a log, or its last line."""
    lines = [line.strip() for line in log.read_text(errors="replace").splitlines() if line.strip()]
    errors = [line.removeprefix("error: ") for line in lines if line.startswith("error: ")]
    return (errors or lines or ["it said nothing"])[-1]


def parse_settings(settings: Sequence[str]) -> dict[str, Json]:
    """`key=value` of --cluster-set -> the key and the value, which is YAML as in a recipe.

    Raises:
        UsageError: no `=`, or no key before it.
        RecipeError: the value is not YAML.
    """
    parsed = {}
    for setting in settings:
        key, equals, text = setting.partition("=")
        if not key or not equals:
            raise UsageError(f"--cluster-set {setting}: write key=value, such as timeout_min=240")
        parsed[key] = parse(text, Place("--cluster-set"), key)[0].plain()
    return parsed
