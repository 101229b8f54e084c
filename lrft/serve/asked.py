"""`Asked`: one answer that somebody waits for, and what they are told of it."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

from lrft.evaluation.sampling import Sampling


@dataclass(frozen=True)
class Piece:
    """More of the text."""

    text: str


@dataclass(frozen=True)
class End:
    """The answer is whole: `stop`, or `length` where it reached its most tokens."""

    reason: Literal["stop", "length"]
    tokens: int


@dataclass(frozen=True)
class Fault:
    """There will be no answer, or no more of it.

    Attributes:
        status: of HTTP.
    """

    status: int
    message: str


Event = Piece | End | Fault


@dataclass(eq=False)
class Asked:
    """An answer to be generated.

    Attributes:
        adapter: whose; None is the base.
        ids: tokens of the prompt.
        most: new tokens at most.
        stop_ids, stops: tokens and texts that end it, themselves left out.
        tell: hears every event, in the thread that computes; must not wait.
        deadline: on the monotonic clock; it is a fault when it passes.
    """

    adapter: str | None
    ids: list[int]
    most: int
    stop_ids: frozenset[int]
    tell: Callable[[Event], None]
    sampling: Sampling = field(default_factory=Sampling)
    stops: tuple[str, ...] = ()
    deadline: float = float("inf")
    gone: threading.Event = field(default_factory=threading.Event)

    @property
    def length(self) -> int:
        """Positions that it may need."""
        return len(self.ids) + self.most

    def cancel(self) -> None:
        """Nobody waits any more."""
        self.gone.set()

    def fault(self) -> Fault | None:
        """Why nothing more is computed for it; told by nobody where nobody waits."""
        if time.monotonic() > self.deadline:
            return Fault(
                504, "the answer took longer than the server allows (--timeout); ask for fewer tokens"
            )
        return Fault(499, "nobody waits any more") if self.gone.is_set() else None
