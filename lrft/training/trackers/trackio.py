"""Trackio: local first; TRACKIO_SPACE_ID or TRACKIO_SERVER_URL send the numbers elsewhere."""

from __future__ import annotations

import secrets
import sys
from contextlib import redirect_stdout
from typing import Any

from lrft.core.run import Run
from lrft.training.trackers.tracker import Tracker


class Trackio(Tracker):
    """A run of the project `logging.trackio`.

    Trackio finds a run by its name alone, so the folder's name is made one that no other run has. What it prints goes
    to standard error.
    """

    key = library = "trackio"
    install = "'lrft[trackio]'"
    session: Any = None  # trackio has no types

    def begin(self, run: Run) -> str | None:
        import trackio

        name = self.id or f"{self.folder.name}-{secrets.token_hex(3)}"
        with redirect_stdout(sys.stderr):
            self.session = trackio.init(
                self.target,
                name=name,
                config=dict(self.settings),
                resume="never" if self.id is None else "allow",
                embed=False,
                auto_log_gpu=False,
                auto_log_cpu=False,
            )
        return name

    def log(self, numbers: dict[str, float], step: int) -> None:
        self.session.log(numbers, step=step)

    def end(self) -> None:
        import trackio

        with redirect_stdout(sys.stderr):
            trackio.finish()  # and not the session's own, which would be finished once more when the process ends
