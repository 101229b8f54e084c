"""Connections, of which each takes one of the files that the system lets a process have: how many, and for how long."""

from __future__ import annotations

import asyncio
import logging
import resource
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

from uvicorn.protocols.http.h11_impl import H11Protocol

from lrft.serve.guards import OVER

MOST, RESERVED = 4096, 128  # connections; files that are no connections, among them those about to be one
AT_ONCE, KEPT = (
    8,
    128,
)  # connections that are taken in one go, before any of them is looked at; that wait for it
DIFFERENT = 20  # errors that are told
LOOKED = 0.5  # seconds between two looks at who is late


class Timed(H11Protocol):
    """A connection that knows since when it is as it is: silent, or being answered.

    Attributes:
        since: on the monotonic clock.
    """

    most = MOST

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Begin, where there is room, or room can be made of one that has said nothing for longest."""
        super().connection_made(transport)
        self.since = time.monotonic()
        there = [one for one in self.connections if isinstance(one, Timed) and not one.transport.is_closing()]
        if len(there) > self.most:
            silent = [one for one in there if not one.at_work]
            min(silent, key=lambda one: one.since, default=self).end()

    def data_received(self, data: bytes) -> None:
        """Go on; a request that is new begins its time."""
        before = self.cycle
        super().data_received(data)
        if self.cycle is not before:
            self.since = time.monotonic()

    def on_response_complete(self) -> None:
        """An answer is over; what comes next has its own time."""
        self.since = time.monotonic()
        super().on_response_complete()

    @property
    def at_work(self) -> bool:
        """Whether a request is being answered, and not only heard out after it was refused."""
        one = self.cycle
        return one is not None and not one.response_complete and OVER not in one.scope

    def end(self) -> None:
        """Close at once, whatever is still to be sent: nobody takes it."""
        self.transport.abort()


def protocol(most: int) -> type[Timed]:
    """The connections of a server that has at most so many."""
    return type("Connection", (Timed,), {"most": most})


def room_for_connections() -> int:
    """Raise the number of files that this process may have as far as it is let; how many connections that makes."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = MOST + RESERVED
    allowed = wanted if hard == resource.RLIM_INFINITY else min(hard, wanted)
    if soft != resource.RLIM_INFINITY and soft < allowed:
        resource.setrlimit(resource.RLIMIT_NOFILE, (allowed, hard))
        soft = allowed
    return MOST if soft == resource.RLIM_INFINITY else max(1, min(MOST, soft - RESERVED))


async def end_the_late(connections: Iterable[object], silent: float, answered: float) -> None:
    """Close, for as long as it is awaited, who says nothing, and who does not take an answer.

    Args:
        connections: as they are at each look.
        silent, answered: seconds that a connection may be without a whole request, and with one.
    """
    while True:
        await asyncio.sleep(LOOKED)
        now = time.monotonic()
        for one in list(connections):
            if isinstance(one, Timed) and now - one.since > (answered if one.at_work else silent):
                one.end()


def told_once(say: Callable[[str], object]) -> Callable[[asyncio.AbstractEventLoop, dict[str, Any]], None]:
    """What becomes of errors that belong to no request: a sentence, the first time."""
    return partial(_tell, say, set())


class ToldOnce(logging.Handler):
    """What uvicorn logs, such as that bytes were no request: a sentence, the first time, whatever strangers send."""

    def __init__(self, say: Callable[[str], object]) -> None:
        super().__init__(logging.WARNING)
        self._say, self._known = say, set[str]()

    def emit(self, record: logging.LogRecord) -> None:
        """Tell a line."""
        error = record.exc_info[1] if record.exc_info else None
        _say_once(self._say, self._known, record.getMessage().strip(), error)

    @contextmanager
    def instead(self) -> Iterator[None]:
        """Hear uvicorn in the place of others, while it runs."""
        logger = logging.getLogger("uvicorn.error")
        handlers, propagate = logger.handlers, logger.propagate
        logger.handlers, logger.propagate = [self], False
        try:
            yield
        finally:
            logger.handlers, logger.propagate = handlers, propagate


def _tell(
    say: Callable[[str], object], known: set[str], _: asyncio.AbstractEventLoop, context: dict[str, Any]
) -> None:
    _say_once(say, known, str(context.get("message", "")), context.get("exception"))


def _say_once(
    say: Callable[[str], object], known: set[str], message: str, error: BaseException | None
) -> None:
    text = message + (f" ({type(error).__name__}: {error})" if error else "")
    if text not in known and len(known) < DIFFERENT:
        known.add(text)
        say(f"lrft serve: {text}")
