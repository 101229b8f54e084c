"""`Waiting`: answers that are not begun, first come first served, and which of them may begin."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from lrft.core.notes import say
from lrft.registry.errors import LrftError
from lrft.serve.asked import Asked, Fault
from lrft.serve.store import Loaded, Store

DIFFERENT = 20  # errors that are told


class QueueFull(Exception):
    """So many wait already that one more is not taken."""


@dataclass(frozen=True)
class Limits:
    """What may be computed at once, and wait.

    Attributes:
        rows: answers computed at once.
        waiting: answers that may wait.
        tokens: positions kept for all rows together, padding included.
        prompts: tokens of the prompts that begin together, padding included; one always may.
    """

    rows: int = 32
    waiting: int = 256
    tokens: int = 32768
    prompts: int = 4096


class Waiting:
    """The queue between those who ask and the thread that computes."""

    def __init__(self, store: Store, limits: Limits) -> None:
        self.limits = limits
        self._store = store
        self._queue: deque[Asked] = deque()
        self._changed = threading.Condition()
        self._said: set[str] = set()
        self.closed = False

    def __len__(self) -> int:
        return len(self._queue)

    def put(self, asked: Asked) -> None:
        """Put an answer at the end.

        Raises:
            QueueFull: too many wait, or nothing is computed any more.
        """
        with self._changed:
            if self.closed or len(self._queue) >= self.limits.waiting:
                raise QueueFull
            self._queue.append(asked)
            self._changed.notify()

    def close(self) -> None:
        """Nothing is computed any more."""
        with self._changed:
            self.closed = True
            self._changed.notify()

    def until(self, busy: Callable[[], bool]) -> bool:
        """Wait for something to do; False at the end."""
        with self._changed:
            self._changed.wait_for(lambda: self.closed or self._queue or busy())
            return not self.closed

    def clear(self) -> list[Asked]:
        """Take all out."""
        with self._changed:
            left = list(self._queue)
            self._queue.clear()
            return left

    def admit(
        self, running: Sequence[Asked], is_over: Callable[[Asked], bool]
    ) -> list[tuple[Asked, Loaded | None]]:
        """Take out those that can begin now, and hold their adapters; the first that cannot keeps its place.

        Args:
            is_over: whether nothing is computed for it, of which it was told.
        """
        coming: list[tuple[Asked, Loaded | None]] = []
        longest = max((asked.length for asked in running), default=0)
        width = 0
        while self._queue:
            asked = self._queue[0]
            if is_over(asked):
                self._pop()
                continue
            count, new = len(running) + len(coming) + 1, len(coming) + 1
            longest, width = max(longest, asked.length), max(width, len(asked.ids))
            if count > self.limits.rows or (count > 1 and count * longest > self.limits.tokens):
                break
            if coming and new * width > self.limits.prompts:
                break
            loaded = None
            if asked.adapter is not None:
                try:
                    loaded = self._store.hold(asked.adapter)
                except (LrftError, OSError, ValueError, MemoryError) as error:
                    self._pop()
                    self._say(f"lrft serve: {asked.adapter} cannot be loaded: {error}")
                    asked.tell(
                        Fault(500, f"{asked.adapter} cannot be loaded; whoever runs the server is told why")
                    )
                    continue
                if loaded is None:
                    break  # those that compute leave no room; it comes as soon as one of them ends
            self._pop()
            coming.append((asked, loaded))
        return coming

    def _say(self, text: str) -> None:
        """Tell what is not the clients', such as where files lie, once for all who ask."""
        if text not in self._said and len(self._said) < DIFFERENT:
            self._said.add(text)
            say(text)

    def _pop(self) -> None:
        with self._changed:
            self._queue.popleft()
