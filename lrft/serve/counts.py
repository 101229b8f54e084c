"""`Counts`: what the server did, as Prometheus reads it."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

GAUGES = ("rows", "waiting", "adapters", "pages_free", "pages_total")


class Counts:
    """Written by the thread that computes alone; read by anybody."""

    def __init__(self) -> None:
        self.answers = self.faults = self.steps = self.row_steps = self.prompt_and_new_tokens = 0
        self.new_tokens = 0
        self.seconds = 0.0

    @contextmanager
    def step(self, rows: int, tokens: int) -> Iterator[None]:
        """A pass of the model over `tokens` tokens of `rows` rows."""
        begun = time.perf_counter()
        yield
        self.seconds += time.perf_counter() - begun
        self.steps += 1
        self.row_steps += rows
        self.prompt_and_new_tokens += tokens

    def ended(self, tokens: int) -> None:
        """An answer is whole."""
        self.answers += 1
        self.new_tokens += tokens

    def failed(self) -> None:
        """There was none, or nobody waited for it."""
        self.faults += 1

    def totals(self) -> dict[str, int | float]:
        """What was done so far."""
        return {
            "answers": self.answers,
            "faults": self.faults,
            "new_tokens": self.new_tokens,
            "tokens": self.prompt_and_new_tokens,
            "passes": self.steps,
            "rows_of_passes": self.row_steps,
            "pass_seconds": round(self.seconds, 6),
        }

    def text(self, now: Mapping[str, int]) -> str:
        """In Prometheus' text format; `now` holds the gauges, and counters that others keep."""
        known = {f"{name}_total": value for name, value in self.totals().items()}
        lines = []
        for name, value in {**known, **now}.items():
            kind = "gauge" if name in GAUGES else "counter"
            lines += [f"# TYPE lrft_{name} {kind}", f"lrft_{name} {value}"]
        return "\n".join(lines) + "\n"
