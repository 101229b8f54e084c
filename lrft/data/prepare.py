"""From a source to judged, encoded rows: the one way training, evaluation and `lrft data` take."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from lrft.data.encode import encode_each
from lrft.data.encoded import Encoded
from lrft.data.gate import inspect
from lrft.data.gate_report import GateReport
from lrft.data.rows import Rows
from lrft.data.tokenize import Renderer


@dataclass(frozen=True)
class Prepared:
    """Rows, their tokens in the same order, and what the gate counted; nothing is judged before `check`.

    Attributes:
        rows: of `encoded`; a document that is learnt in windows is here once for each.
        of: for each of them, which of the rows that were given it is.
    """

    rows: Rows
    encoded: Sequence[Encoded]
    report: GateReport
    of: Sequence[int]


def prepare(
    rows: Rows,
    renderer: Renderer,
    progress: Callable[[int, int], None] | None = None,
    processes: int = 1,
) -> Prepared:
    """Encode and inspect; `prepared.report.check(...)` is the gate.

    Raises:
        DataError: a row cannot be used at all.
    """
    encoded, of = encode_each(rows, renderer, progress, processes)
    shown = rows if len(encoded) == len(rows) else rows.chosen(of)
    report = inspect(encoded, shown, renderer.tokenizer, renderer.stop_ids, renderer.max_length)
    return Prepared(shown, encoded, report, of)
