"""The gate before step 1: what the encoded rows hold, and whether they can be trained on."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from itertools import compress

from lrft.data.encoded import Encoded
from lrft.data.rows import Rows
from lrft.registry.errors import DataError
from lrft.registry.json import Json
from lrft.registry.protocols import Tokenizer

SHOWN = 3  # offending rows named in a message
LONGEST_ADVISED = 131_072  # tokens of a row to train at that a message proposes; a longer one is hardly meant
SCORED_WHOLE = "score"  # of `too_long`: rows over the limit are no problem


@dataclass(frozen=True)
class GateReport:
    """Counts over the rows of one source. A pair is one row; what ails one of its answers ails the row.

    Attributes:
        rows: all rows, whatever became of them.
        pairs: rows that are pairs of answers; their lengths are those of both answers, each with its prompt.
        tokens, supervised: tokens and targets of the rows that are used.
        without_target, empty_answers: rows with nothing to learn; rows whose only targets are stop tokens.
        without_stop: whole rows whose last target is not a stop token.
        stops_cut: rows that lost their stop token to truncation on the right.
        wrong_bos: rows with too many or too few beginning-of-text tokens.
        merged: rows where one token spans the seam of prompt and answer, whose start is then not learnt.
        lost: those of whose answer nothing is learnt; apart: rows whose prompt and answer are encoded each for itself.
        left_out: rows with a message whose text is missing from the rendered text, or altered in it.
        unwritten: column or field of a message -> rows in which it means something and reaches no text.
        unread: the same of those that mean nothing to a format, such as an id.
        too_long, truncated, dropped: rows longer than max_length before any cut, and what happened to them.
        duplicates: rows equal to an earlier one.
        equal_answers: pairs of two equal answers, which teach nothing.
        length_p50, length_p95, length_max: tokens before any cut.
        suggested_max_length: holds the longest row.
        stop_tokens: the tokens that count as a stop.
        first: kind of problem -> where its first rows are.
    """

    rows: int
    pairs: int
    tokens: int
    supervised: int
    without_target: int
    empty_answers: int
    without_stop: int
    stops_cut: int
    wrong_bos: int
    merged: int
    lost: int
    apart: int
    left_out: int
    unwritten: dict[str, int]
    unread: dict[str, int]
    too_long: int
    truncated: int
    dropped: int
    duplicates: int
    equal_answers: int
    max_length: int
    length_p50: int
    length_p95: int
    length_max: int
    suggested_max_length: int
    stop_tokens: tuple[str, ...]
    first: dict[str, tuple[str, ...]]

    @property
    def supervised_share(self) -> float:
        """Targets as a share of the tokens."""
        return self.supervised / self.tokens if self.tokens else 0.0

    def record(self) -> dict[str, Json]:
        """Plain values, for the run's record."""
        return {**asdict(self), "supervised_share": self.supervised_share}

    def check(self, allow_empty_targets: bool, too_long: str, source: str = "data.train") -> None:
        """Stop unless every row can be used as the recipe says.

        Args:
            allow_empty_targets: rows without a target are skipped.
            too_long: the recipe's `data.too_long`, or `SCORED_WHOLE`.
            source: the key that the rows come from.

        Raises:
            DataError: every reason, with numbers, the first rows it concerns, and what to set.
        """
        problems = self._problems(allow_empty_targets, too_long, source)
        if problems:
            raise DataError("\n".join(problems))

    def _problems(self, allow_empty_targets: bool, too_long: str, source: str) -> list[str]:
        of = f"of {self.rows} rows" + ("" if source == "data.train" else f" of {source}")
        problems = []
        if self.too_long and too_long == "error":
            counted = ", a pair being both answers, each with its prompt" if self.pairs else ""
            problems.append(
                f"data.too_long: {self.too_long} {of} are longer than train.max_length {self.max_length}{counted} "
                f"(median {self.length_p50}, 95 % at most {self.length_p95}, longest {self.length_max} tokens"
                f"; {self._where('too_long')}); {self._remedy()}"
            )
        if self.without_target and not allow_empty_targets:
            problems.append(
                f"{source}: {self.without_target} {of} have no token to learn "
                f"({self._where('without_target')}); correct them, raise train.max_length if it cuts them, "
                "or set data.allow_empty_targets: true to skip them"
            )
        if not self.supervised and not problems:
            problems.append(
                f"{source}: none {of} has a token to learn; check data.format and data.too_long: {too_long}"
            )
        if self.without_stop:
            problems.append(
                f"data.format: {self.without_stop} {of} do not end in a stop token, so the model would not "
                f"learn to stop ({self._where('without_stop')}); stop tokens are "
                f"{', '.join(self.stop_tokens) or 'none'}; use a chat template that ends answers in one of "
                "them, or render: plain"
            )
        if self.wrong_bos:
            problems.append(
                f"data.format: {self.wrong_bos} {of} have a wrong number of beginning-of-text tokens "
                f"({self._where('wrong_bos')}); leave them out of the text and the template, one is added"
            )
        if self.lost:
            problems.append(
                f"data.format: in {self.lost} {of} the whole answer is one token with the end of the prompt, so "
                f"nothing of it is learnt ({self._where('lost')}); end the prompt in a space or a line feed"
            )
        return problems + self._unwritten()

    def _remedy(self) -> str:
        if self.suggested_max_length > LONGEST_ADVISED:
            return "correct or remove the longest, or set data.too_long: drop or truncate_left"
        return f"set train.max_length: {self.suggested_max_length}, or data.too_long: drop or truncate_left"

    def _unwritten(self) -> list[str]:
        return [
            f"data.format: {count} of {self.rows} rows have `{name}`, which does not reach the text "
            f"({self._where(_key(name))}); use a format, or a chat template, that writes it, or leave it out on "
            f"purpose: data.format.ignore: [{name}]"
            for name, count in self.unwritten.items()
        ]

    def _where(self, kind: str) -> str:
        return "first: " + ", ".join(self.first[kind])


def inspect(
    encoded: Sequence[Encoded], rows: Rows, tokenizer: Tokenizer, stop_ids: set[int], max_length: int
) -> GateReport:
    """Count what the gate judges; `encoded[i]` is `rows[i]`."""
    tests = _tests(stop_ids, max_length)
    found = {kind: [index for index, row in enumerate(encoded) if test(row)] for kind, test in tests.items()}
    found["duplicates"] = _duplicates(encoded)
    unwritten = _named(encoded, lambda row: row.notes.unwritten)
    unread = _named(encoded, lambda row: row.notes.unread)
    counts = {kind: len(indices) for kind, indices in found.items()}
    found |= {_key(name): indices for name, indices in unwritten.items()}
    lengths = sorted(row.length for row in encoded) or [0]
    return GateReport(
        rows=len(encoded),
        pairs=sum(bool(row.parts) for row in encoded),
        tokens=sum(len(row.input_ids) for row in encoded),
        supervised=sum(row.targets for row in encoded),
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
        unwritten={name: len(indices) for name, indices in unwritten.items()},
        unread={name: len(indices) for name, indices in unread.items()},
        **counts,
    )


def _tests(stop_ids: set[int], max_length: int) -> dict[str, Callable[[Encoded], bool]]:
    """Kind of problem -> whether a row has it."""
    return {
        "without_target": lambda row: not row.dropped and not row.targets,
        "empty_answers": lambda row: not row.read_again and _only_stops(row, stop_ids),
        "without_stop": lambda row: not row.truncated and not row.goes_on and _unstopped(row, stop_ids),
        "stops_cut": lambda row: row.truncated and _unstopped(row, stop_ids),
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


def _key(name: str) -> str:
    return f"unwritten {name}"


def _named(encoded: Sequence[Encoded], names: Callable[[Encoded], tuple[str, ...]]) -> dict[str, list[int]]:
    """Name -> the rows that have it."""
    found: dict[str, list[int]] = {}
    for index, row in enumerate(encoded):
        for name in names(row):
            found.setdefault(name, []).append(index)
    return found


def _unstopped(row: Encoded, stop_ids: set[int]) -> bool:
    learnt = [_learnt(document) for document in row.documents()]
    return any(tokens and tokens[-1] not in stop_ids for tokens in learnt)


def _only_stops(row: Encoded, stop_ids: set[int]) -> bool:
    learnt = [_learnt(document) for document in row.documents()]
    return any(tokens and all(token in stop_ids for token in tokens) for tokens in learnt)


def _equal_answers(row: Encoded) -> bool:
    documents = row.documents()
    if len(documents) > 1 and row.label is not None:
        return documents[0].input_ids == documents[1].input_ids
    return len(documents) > 1 and _learnt(documents[0]) == _learnt(documents[1]) != []


def _learnt(document: Encoded) -> list[int]:
    """The targets of one document."""
    return list(compress(document.input_ids, document.supervised))


def _duplicates(encoded: Sequence[Encoded]) -> list[int]:
    seen, found = set[tuple[int, ...]](), list[int]()
    for index, row in enumerate(encoded):
        ids = tuple(row.input_ids)
        if ids and ids in seen:
            found.append(index)
        seen.add(ids)
    return found
