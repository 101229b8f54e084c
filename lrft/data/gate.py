"""The gate before step 1: what the encoded rows hold, and whether they can be trained on."""

from __future__ import annotations

from array import array
from collections.abc import Callable, Mapping, Sequence
from itertools import compress

from lrft.data.encoded import Encoded
from lrft.data.gate_report import GateReport, key_of
from lrft.data.row_sums import tokens_sum
from lrft.data.rows import Rows
from lrft.registry.protocols import Tokenizer

SHOWN = 3  # offending rows named in a message


def inspect(
    encoded: Sequence[Encoded], rows: Rows, tokenizer: Tokenizer, stop_ids: set[int], max_length: int
) -> GateReport:
    """Count what the gate judges; `encoded[i]` is `rows[i]`."""
    seen = _Seen(_tests(stop_ids, max_length))
    for index, row in enumerate(encoded):  # once: each row may be made for it
        seen.look(index, row)
    found = seen.found
    counts = {kind: len(indices) for kind, indices in found.items()}
    found |= {key_of(name): indices for name, indices in seen.unwritten.items()}
    lengths = sorted(seen.lengths) or [0]
    return GateReport(
        rows=len(encoded),
        pairs=seen.pairs,
        embedded=seen.embedded,
        tokens=seen.tokens,
        supervised=seen.targets,
        max_length=max_length,
        length_p50=lengths[len(lengths) // 2],
        length_p95=lengths[min(len(lengths) - 1, len(lengths) * 95 // 100)],
        length_max=lengths[-1],
        suggested_max_length=-(-lengths[-1] // 64) * 64,
        stop_tokens=tuple(map(str, tokenizer.convert_ids_to_tokens(sorted(stop_ids)))),
        first={
            kind: tuple(rows.where(index) for index in indices[:SHOWN])
            for kind, indices in found.items()
            if indices
        },
        unwritten={name: len(indices) for name, indices in seen.unwritten.items()},
        unread={name: len(indices) for name, indices in seen.unread.items()},
        **counts,
    )


def _tests(stop_ids: set[int], max_length: int) -> dict[str, Callable[[Encoded], bool]]:
    """Kind of problem -> whether a row has it."""
    return {
        "without_target": lambda row: not row.dropped and not row.targets,
        "empty_answers": lambda row: not row.read_again and _only_stops(row, stop_ids),
        "without_stop": lambda row: not row.truncated and not row.goes_on and _unstopped(row, stop_ids),
        "stops_cut": lambda row: row.truncated and _unstopped(row, stop_ids),
        "stops_within": lambda row: any(_goes_on(document, stop_ids) for document in row.documents()),
        "wrong_bos": lambda row: not row.dropped and row.extra_bos != 0,
        "merged": lambda row: not row.dropped and row.merged,
        "lost": lambda row: row.merged and _only_stops(row, stop_ids),
        "apart": lambda row: not row.dropped and row.apart,
        "left_out": lambda row: not row.dropped and row.notes.left_out,
        "too_long": lambda row: row.length > max_length,
        "truncated": lambda row: row.truncated,
        "dropped": lambda row: row.dropped,
        "equal_answers": _equal_answers,
    }


class _Seen:
    """What was counted of the rows so far.

    Attributes:
        found: kind of problem -> the rows that have it.
        unwritten, unread: name of what no text holds -> the rows that have it.
    """

    def __init__(self, tests: Mapping[str, Callable[[Encoded], bool]]) -> None:
        self.tests = tests
        self.found: dict[str, list[int]] = {kind: [] for kind in (*tests, "duplicates")}
        self.unwritten: dict[str, list[int]] = {}
        self.unread: dict[str, list[int]] = {}
        self.lengths = array("q")
        self.pairs = self.embedded = self.tokens = self.targets = 0
        self._texts: set[bytes] = set()

    def look(self, index: int, row: Encoded) -> None:
        """Count a row."""
        for kind, test in self.tests.items():
            if test(row):
                self.found[kind].append(index)
        if row.input_ids:
            text = tokens_sum(row.input_ids)
            if text in self._texts:
                self.found["duplicates"].append(index)
            self._texts.add(text)
        for names, by_name in ((row.notes.unwritten, self.unwritten), (row.notes.unread, self.unread)):
            for name in names:
                by_name.setdefault(name, []).append(index)
        self.lengths.append(row.length)
        self.pairs += bool(row.parts) and not row.embedded
        self.embedded += row.embedded
        self.tokens += len(row.input_ids)
        self.targets += row.targets


def _unstopped(row: Encoded, stop_ids: set[int]) -> bool:
    learnt = [_learnt(document) for document in row.documents()]
    return any(tokens and tokens[-1] not in stop_ids for tokens in learnt)


def _only_stops(row: Encoded, stop_ids: set[int]) -> bool:
    learnt = [_learnt(document) for document in row.documents()]
    return any(tokens and all(token in stop_ids for token in tokens) for tokens in learnt)


def _goes_on(document: Encoded, stop_ids: set[int]) -> bool:
    """Whether an answer goes on after a stop token; whole texts, learnt from their start, may hold several."""
    learnt = document.supervised
    if document.whole or all(learnt[1:]):
        return False
    ends = zip(document.input_ids, learnt, learnt[1:], strict=False)
    return any(here and then and token in stop_ids for token, here, then in ends)


def _equal_answers(row: Encoded) -> bool:
    documents = row.documents()
    if len(documents) > 1 and row.label is not None:
        return documents[0].input_ids == documents[1].input_ids
    return len(documents) > 1 and _learnt(documents[0]) == _learnt(documents[1]) != []


def _learnt(document: Encoded) -> list[int]:
    """The targets of one document."""
    return list(compress(document.input_ids, document.supervised))
