"""A signal at an exact moment: when a function looks, for the n-th time, whether somebody asked to stop."""

from __future__ import annotations

import contextlib
import os
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from lrft.core import stop

SCRATCH = (".tmp", ".old", ".damaged")


class Blow:
    """What came of it: whether the place was reached, and who looked how often before."""

    def __init__(self) -> None:
        self.fell = False
        self.seen: Counter[str] = Counter()


@contextmanager
def struck(place: str, number: int, nth: int = 1) -> Iterator[Blow]:
    """Within it `number` is sent to this process as the function called `place` looks for the nth time."""
    blow, asked = Blow(), stop.asked

    def looked() -> int | None:
        where = _who_looks()
        blow.seen[where] += 1
        if not blow.fell and where == place and blow.seen[where] == nth:
            blow.fell = True
            os.kill(os.getpid(), number)
        return asked()

    stop.asked = looked
    try:
        yield blow
    finally:
        stop.asked = asked


def _who_looks() -> str:
    frame = sys._getframe(2)
    while (
        frame.f_code.co_filename in (stop.__file__, __file__, contextlib.__file__)
        or frame.f_code.co_name == "stop_signal"
    ):
        frame = frame.f_back
    return frame.f_code.co_name


def scratch_in(folder: Path) -> list[str]:
    """What only a write that is going on should leave."""
    return [
        str(path.relative_to(folder))
        for path in sorted(folder.rglob("*"))
        if any(part in path.name for part in SCRATCH)
    ]


def files_in(folder: Path) -> dict[str, bytes]:
    """Every file by its path, locks left out."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name != ".lock"
    }
