"""What coming steps need, made in a background thread while the device computes."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

Made = TypeVar("Made")

AHEAD = 2  # steps: one would be late where a step's rows are made as long as the step takes
THREAD = "lrft-batches"  # what its name begins with


def made_ahead(make: Callable[[int], Made], steps: range) -> Generator[Made, None, None]:
    """make(step) of each of `steps` in turn, up to `AHEAD` of them made before they are asked for.

    What `make` raises for a step is raised where that step is asked for. Closing the generator, or dropping it, ends
    the thread once it has made what it is at.

    Args:
        make: a function of the step alone, which draws from no generator that anybody else draws from.
    """
    pool = ThreadPoolExecutor(1, THREAD)
    waiting: deque[Future[Made]] = deque()
    coming = iter(steps)
    try:
        for _ in steps:
            while len(waiting) <= AHEAD and (step := next(coming, None)) is not None:
                waiting.append(pool.submit(make, step))
            yield waiting.popleft().result()
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
