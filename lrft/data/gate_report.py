"""What the gate counted, and which of it stops a training, in sentences."""

from __future__ import annotations

from dataclasses import asdict, dataclass

from lrft.registry.errors import DataError
from lrft.registry.json import Json

LONGEST_ADVISED = 131_072  # tokens of a row to train at that a message proposes; a longer one is hardly meant
OTHERWISE = "drop, truncate_left, or windows for whole texts"
SCORED_WHOLE = "score"  # of `too_long`: rows over the limit are no problem


@dataclass(frozen=True)
class GateReport:
    """Counts over the rows of one source. A pair is one row, as are texts to embed; what ails one ails the row.

    Attributes:
        rows: all rows, whatever became of them.
        pairs: rows that are pairs of answers; their lengths are those of both answers, each with its prompt.
        tokens, supervised: tokens and targets of the rows that are used.
        without_target, empty_answers: rows with nothing to learn; rows whose only targets are stop tokens.
        without_stop: whole rows whose last target is not a stop token.
        stops_cut: rows that lost their stop token to truncation on the right.
        stops_within: rows with an answer that goes on after a stop token, which its own text then holds.
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
        embedded: rows of texts to embed, whose lengths are those of all of them; earlier records have neither these nor
            `stops_within`.
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
    embedded: int = 0
    stops_within: int = 0

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
            counted = ", a row being all of its texts" if self.embedded else counted
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
        if self.embedded:
            return f"set data.format.max_tokens, train.max_length: {self.suggested_max_length} or data.too_long: drop"
        if self.suggested_max_length > LONGEST_ADVISED:
            return f"correct or remove the longest, or set data.too_long: {OTHERWISE}"
        return f"set train.max_length: {self.suggested_max_length}, or data.too_long: {OTHERWISE}"

    def _unwritten(self) -> list[str]:
        return [
            f"data.format: {count} of {self.rows} rows have `{name}`, which does not reach the text "
            f"({self._where(key_of(name))}); use a format, or a chat template, that writes it, or leave it out on "
            f"purpose: data.format.ignore: [{name}]"
            for name, count in self.unwritten.items()
        ]

    def _where(self, kind: str) -> str:
        return "first: " + ", ".join(self.first[kind])


def key_of(name: str) -> str:
    """The kind of problem that a field is which reaches no text."""
    return f"unwritten {name}"
