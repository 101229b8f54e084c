"""What the person at the terminal is told while work goes on. Results go to standard output instead."""

from __future__ import annotations

import logging
import os
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import IO

from lrft.registry.secrets import masked

# Read by libraries that are imported later, and inherited by the processes we start.
NO_BARS = {"TQDM_DISABLE": "1", "HF_HUB_DISABLE_PROGRESS_BARS": "1"}
SILENT = {**NO_BARS, "WANDB_SILENT": "true"}


class _Switch:
    off = False


def say(message: str) -> None:
    """One line on standard error."""
    if not silent():
        print(masked(message), file=sys.stderr, flush=True)


def silence(wanted: bool) -> None:
    """Turn notes and progress off, those of libraries too, or on again. Errors are not notes."""
    _Switch.off = wanted
    logging.disable(logging.WARNING if wanted else logging.NOTSET)
    if wanted:
        warnings.simplefilter("ignore")
        os.environ.update(SILENT)


def draw_only_on_a_terminal() -> None:
    """Keep the bars of libraries, which are made of control characters, out of files and pipes."""
    if not is_terminal(sys.stderr):
        os.environ.update(NO_BARS)


@contextmanager
def restored() -> Iterator[None]:
    """Notes are on again at the end, whatever was silenced meanwhile."""
    try:
        with warnings.catch_warnings():
            yield
    finally:
        silence(False)


def silent() -> bool:
    """Whether notes and progress are not to be shown."""
    return _Switch.off or not is_lead()


def is_lead() -> bool:
    """Whether this process speaks for the launch: it is the only one, or the first of those a launcher started."""
    rank, world = (os.environ.get(name, "") for name in ("RANK", "WORLD_SIZE"))
    return not (rank.isdigit() and world.isdigit() and int(world) > 1 and int(rank) > 0)


def is_terminal(stream: IO[str] | None) -> bool:
    """Whether bars, colours and boxes can be drawn there; an environment that forces colours draws no bars."""
    return stream is not None and stream.isatty() and os.environ.get("TERM") != "dumb"
