"""`Tracker`: sends the numbers of a run somewhere else, and is never the reason why the run fails."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import ClassVar

from torch.optim.optimizer import StateDict

from lrft.core.callback import Callback
from lrft.core.notes import say
from lrft.core.run import Run
from lrft.registry.errors import MissingExtra, first_line
from lrft.registry.json import Json


class Tracker(Callback):
    """What a tracker's file fills in is `begin`, `log` and `end`; whatever they raise is told once, and it is left.

    Attributes:
        key: the setting under `logging`.
        library: what is imported for it.
        install: what `pip install` is given for that.
        rewrites: whether more numbers of a step can be sent when a later call begins with that step.
        id: what the tracker calls this run; kept in the checkpoint, so that a resumed run goes on in the same place.
        complete: whether the last step was reached.
        sent: the last step that this sitting sent numbers of.
    """

    key: ClassVar[str]
    library: ClassVar[str]
    install: ClassVar[str]
    rewrites: ClassVar[bool] = True

    def __init__(self, target: str, folder: Path, settings: Mapping[str, Json]) -> None:
        """Take where the numbers go: `target` is the value in the recipe, `settings` the recipe itself.

        Raises:
            MissingExtra: the library is not installed.
        """
        self.target, self.folder, self.settings = target, folder, settings
        self.id: str | None = None
        self.complete = False
        self.works = False
        self.sent = 0
        try:
            importlib.import_module(self.library)
        except ImportError:
            raise MissingExtra(f"logging.{self.key}: needs `pip install {self.install}`") from None

    def begin(self, run: Run) -> str | None:
        """Begin the tracker's run, or go on with `self.id` where there is one; returns what to find it by."""
        raise NotImplementedError(f"{type(self).__name__} declares no beginning")

    def log(self, numbers: dict[str, float], step: int) -> None:
        """Send the numbers of a step, those of metrics.jsonl."""
        raise NotImplementedError(f"{type(self).__name__} sends nothing")

    def end(self) -> None:
        """Close the tracker's run, `self.complete` or not."""

    def start(self, run: Run) -> None:
        if run.rank:
            return
        self.works = True

        def begin() -> None:
            self.id = self.begin(run)

        self._attempt(begin)
        if (
            run.metrics and self.rewrites
        ):  # a score that a signal had cut short, taken before this sitting's first step
            self.after_step(run)

    def after_step(self, run: Run) -> None:
        numbers = {name: value for name, value in run.metrics.items() if isinstance(value, int | float)}
        self._attempt(lambda: self.log(numbers, run.step))
        self.sent = run.step

    def finish(self, run: Run) -> None:
        self.complete = True

    def scored(self, numbers: Mapping[str, float], step: int) -> None:
        """Send what was scored after the last step; behind it where an earlier sitting sent its numbers."""
        behind = not self.rewrites and self.sent != step
        self._attempt(lambda: self.log(dict(numbers), step + behind))

    def close(self) -> None:
        self._attempt(self.end)

    def state_dict(self) -> StateDict:
        return {"id": self.id}

    def load_state_dict(self, state: StateDict) -> None:
        self.id = state["id"]

    def _attempt(self, act: Callable[[], object]) -> None:
        """Do it while the tracker works. A tracker is somebody else's code, and may raise anything."""
        if not self.works:
            return
        try:
            act()
        except Exception as error:
            self.works = False
            reason = first_line(error)
            say(f"logging.{self.key}: failed, and the run goes on without it ({reason})")


def trackers_of(run: Run) -> list[Tracker]:
    """The trackers among the callbacks of a run."""
    return [callback for callback in run.callbacks if isinstance(callback, Tracker)]
