"""Notes and progress for the person at the terminal; results go to standard output instead."""

from __future__ import annotations

import sys

from lrft.evaluate.progress import EvaluationBar


def say(message: str) -> None:
    """One line on standard error."""
    print(message, file=sys.stderr, flush=True)


def progress() -> EvaluationBar:
    """A bar with rate and time left, or a plain line now and then; called with (what, done, total)."""
    return EvaluationBar()
