"""From a source to judged, encoded rows: the one way training, evaluation and `lrft data` take."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from lrft.data.encoded import Encoded
from lrft.data.gate import GateReport, inspect
from lrft.data.sources import Rows
from lrft.data.tokenize import Renderer, encode_all


@dataclass(frozen=True)
class Prepared:
    """Rows, their tokens in the same order, and what the gate counted; nothing is judged before `check`."""

    rows: Rows
    encoded: list[Encoded]
    report: GateReport


def prepare(rows: Rows, renderer: Renderer, progress: Callable[[int, int], None] | None = None) -> Prepared:
    """Encode and inspect; `prepared.report.check(...)` is the gate.

    Raises:
        DataError: a row cannot be used at all.
    """
    encoded = encode_all(rows, renderer, progress)
    report = inspect(encoded, rows, renderer.tokenizer, renderer.stop_ids, renderer.max_length)
    return Prepared(rows, encoded, report)
