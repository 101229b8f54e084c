"""Weights & Biases; without an account it writes its local files and says so once."""

from __future__ import annotations

import netrc
import os
from pathlib import Path
from typing import TYPE_CHECKING, Literal, cast
from urllib.parse import urlparse

from lrft.core.notes import say
from lrft.core.run import Run
from lrft.training.trackers.tracker import Tracker

if TYPE_CHECKING:
    from wandb import Run as Session

Mode = Literal["online", "offline", "disabled", "shared"] | None


class Wandb(Tracker):
    """A run of the project `logging.wandb`; everything else is set by WANDB_* variables."""

    key = library = install = "wandb"
    rewrites = False  # its steps only rise
    session: Session | None = None

    def begin(self, run: Run) -> str | None:
        import wandb

        mode = cast(Mode, os.environ.get("WANDB_MODE"))
        if mode is None and not has_account():
            mode = "offline"
            say("logging.wandb: no account found, keeping local files only")
        os.environ.setdefault(
            "WANDB_DISABLE_GIT", "true"
        )  # it would run git, and keep the address of its remote
        self.session = wandb.init(
            project=self.target,
            name=os.environ.get("WANDB_NAME") or self.folder.name,
            id=self.id,
            resume="allow",
            dir=self.folder,
            mode=mode,
            config=dict(self.settings),
        )
        return self.session.id

    def log(self, numbers: dict[str, float], step: int) -> None:
        assert self.session is not None
        self.session.log(numbers, step=step)

    def end(self) -> None:
        if self.session is not None:
            self.session.finish()


def has_account() -> bool:
    """Whether a Weights & Biases key is at hand; a .netrc that only knows other hosts is none."""
    if os.environ.get("WANDB_API_KEY"):
        return True
    host = urlparse(os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai")).hostname or ""
    try:
        known = netrc.netrc(os.environ.get("NETRC") or Path("~/.netrc").expanduser())
    except (OSError, netrc.NetrcParseError):
        return False
    return host in known.hosts
