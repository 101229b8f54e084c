"""How far an evaluation is: a bar with rate and time left, or plain lines where there is no terminal."""

from __future__ import annotations

import sys
import time
from types import TracebackType

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
)
from rich.progress import Task as BarTask
from rich.text import Text

from lrft.core.notes import is_terminal, silent

EVERY = 10.0  # seconds between plain lines


class EvaluationBar:
    """A `Progress` for `Subject`, called with (what, done, total). A context: it tidies the terminal."""

    def __init__(self, console: Console | None = None, unit: str = "rows") -> None:
        self.unit = unit
        self.console = console or Console(stderr=True, force_terminal=is_terminal(sys.stderr))
        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            _Rate(unit),
            TimeRemainingColumn(),
        )
        drawn = self.console.is_terminal and not silent()
        self.bar = Progress(*columns, console=self.console) if drawn else None
        self.current: tuple[str, int] | None = None
        self.began = self.printed = 0.0
        self.done = 0
        self.item = TaskID(0)

    def __call__(self, what: str, done: int, total: int) -> None:
        """Show that `done` of `total` items of `what` are finished."""
        if self.current != (what, total) or done < self.done:
            self._begin(what, total)
        self.done = done
        if self.bar is not None:
            self.bar.update(self.item, completed=done)
        elif not silent() and (done >= total or time.monotonic() - self.printed >= EVERY):
            self._line(what, done, total)

    def __enter__(self) -> EvaluationBar:
        if self.bar is not None:
            self.bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.bar is not None:
            self.bar.stop()

    def _begin(self, what: str, total: int) -> None:
        """A new task: a new bar, timed from here."""
        self.current, self.done = (what, total), 0
        self.began = self.printed = time.monotonic()
        if self.bar is not None:
            self.item = self.bar.add_task(what, total=total)

    def _line(self, what: str, done: int, total: int) -> None:
        seconds = time.monotonic() - self.began
        self.printed = time.monotonic()
        rate = done / seconds if seconds > 0 else 0.0
        left = f", {(total - done) / rate:.0f} s left" if rate > 0 and done < total else ""
        line = f"{what} {done}/{total}  {rate:.3g} {self.unit}/s{left}"
        self.console.print(line, markup=False, highlight=False, soft_wrap=True)


class _Rate(ProgressColumn):
    def __init__(self, unit: str) -> None:
        super().__init__()
        self.unit = unit

    def render(self, task: BarTask) -> Text:
        return Text("" if task.speed is None else f"{task.speed:.3g} {self.unit}/s")
