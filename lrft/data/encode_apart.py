"""Rows to token ids by several processes: the same tokens, notes and errors in the same order, whatever their number.

Rows are read here, in their order, for the files of large ones have one place that is read next. What is sent are
batches of rows, and what comes back of each is what one process would have made of it.
"""

from __future__ import annotations

import ctypes
import multiprocessing
import os
import signal
import sys
from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import AbstractContextManager, nullcontext
from itertools import islice
from typing import TYPE_CHECKING

from lrft.core import stop
from lrft.data.encoded import Encoded
from lrft.data.example import Row
from lrft.registry.errors import DataError, UsageError

if TYPE_CHECKING:
    from lrft.data.rows import Rows
    from lrft.data.tokenize import Renderer

AHEAD = 2  # batches a process that wait for it, or for those before them
PR_SET_PDEATHSIG = 1  # of linux/prctl.h

Place = Callable[[int], AbstractContextManager[None]]
Made = tuple[list[list[Encoded]], str | None, bool, bool]
"""The entries of every row of a batch up to the first that fails, with what is wrong with that; and whether a template
was used so far, and asked for the date."""


class _Process:
    renderer: Renderer  # of a process that encodes, as it was where that began


def entries_apart(
    rows: Rows, renderer: Renderer, processes: int, batch: int, place: Place
) -> Generator[list[Encoded]]:
    """The entries of every row in order, as `renderer` makes them.

    Args:
        place: says where a row is, by its number, that cannot be used.

    Raises:
        DataError: a row cannot be used, the first of them.
        UsageError: this system cannot, or it ended a process.
    """
    if "fork" not in multiprocessing.get_all_start_methods():
        raise UsageError("--processes: this system copies no process; leave it out")
    given = iter(rows)
    waiting: deque[tuple[Future[Made], DataError | None]] = deque()
    done, ended = 0, False
    pool = ProcessPoolExecutor(
        processes, multiprocessing.get_context("fork"), initializer=_begin, initargs=(renderer, os.getpid())
    )
    try:
        while True:
            while len(waiting) < processes * AHEAD and not ended:
                stop.poll()
                held, failed = _read(given, batch)
                waiting.append((pool.submit(_entries, held), failed))
                ended = len(held) < batch
            if not waiting:
                return
            future, failed = waiting.popleft()
            made, wrong, used, asks = future.result()
            renderer.template.used |= used
            renderer.template.asks_for_the_date |= asks
            for entries in made:
                yield [renderer.known.shared(one) for one in entries]
            done += len(made)
            if wrong is not None:
                with place(done):
                    raise DataError(wrong)
            if failed is not None:
                raise failed
    except BrokenProcessPool:
        raise UsageError(
            "--processes: the system ended one of them, for its memory say; give fewer"
        ) from None
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _read(given: Iterator[Row], count: int) -> tuple[list[Row], DataError | None]:
    """The next rows, fewer at the end or before one that cannot be read, and why that cannot: told in its turn."""
    held: list[Row] = []
    try:
        for row in islice(given, count):
            held.append(row)  # those before it stay
    except DataError as error:
        return held, error
    return held, None


def _begin(renderer: Renderer, parent: int) -> None:
    """What a process does first: it ends with its parent, leaves signals to it, and has one thread."""
    for number in stop.SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    if sys.platform.startswith("linux"):
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, int(signal.SIGKILL), 0, 0, 0)
    if os.getppid() != parent:
        os._exit(1)
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    stop.forget()
    _Process.renderer = renderer


def _entries(rows: Sequence[Row]) -> Made:
    from lrft.data.encode import entries

    found: list[list[Encoded]] = []
    wrong = None
    try:
        for one in entries(rows, _Process.renderer, lambda index: nullcontext()):
            found.append(one)
    except DataError as error:
        wrong = str(error)
    template = _Process.renderer.template
    return found, wrong, template.used, template.asks_for_the_date
