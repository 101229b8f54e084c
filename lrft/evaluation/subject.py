"""`Subject`: everything a task needs of what it scores, and the stop signal it polls between batches."""

from __future__ import annotations

import signal
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from lrft.core import stop
from lrft.core.adapted import adapted
from lrft.core.features import Features
from lrft.core.plain import plain
from lrft.core.team import ALONE, Team
from lrft.evaluation.lengths import check_lengths
from lrft.model.rope import positions_of
from lrft.registry.errors import Interrupted, UsageError
from lrft.registry.protocols import Tokenizer

if TYPE_CHECKING:
    from lrft.data.rows import Rows
    from lrft.data.tokenize import Renderer
    from lrft.evaluation.tasks._task import TaskResult
    from lrft.model.causal_lm import CausalLM
    from lrft.model.hf import HF

Progress = Callable[[str, int, int], None]
"""Called with (what is being done, items finished, items in all): at the start, and after every batch."""


class EvaluationStopped(Interrupted):
    """Asked to stop between two batches; a partial score is never returned.

    Attributes:
        finished: the results of the tasks before it, by name; they are in `file`, where anything was to be written.
        left: names of the tasks that have no score.
    """

    told = False  # who asked for the scores says how to get them

    def __init__(self, done: int, total: int) -> None:
        self.number = stop.asked() or signal.SIGINT  # the signal may have come to another process
        self.finished: Mapping[str, TaskResult] = {}
        self.left: Sequence[str] = ()
        self.file: Path | None = None
        message = stop.sentence(self.number, f"stopped after {done} of {total} rows; no score written")
        super().__init__(self.number, message)

    @property
    def scored(self) -> str:
        """Which tasks have scores, and where, in words."""
        if not self.finished:
            return "no task is scored yet"
        where = "" if self.file is None else f" (in {self.file})"
        return f"{', '.join(self.finished)} scored{where}, {', '.join(self.left)} not"

    def telling(self, kept: str, record: object) -> Interrupted:
        """What to raise in its place: it says what is kept, and holds what was scored."""
        error = Interrupted(self.number, stop.sentence(self.number, kept))
        error.record = plain(record)
        return error


def silent(what: str, done: int, total: int) -> None:
    """No progress display."""


@dataclass(frozen=True)
class Watch:
    """Who is told how far it is, and asked whether to go on.

    Attributes:
        what, total: the name and the number of all rows, for the display and the message of a stop.
        should_stop: polled between batches.
    """

    what: str
    total: int
    should_stop: Callable[[], bool] = stop.wanted
    progress: Progress | None = None

    def report(self, done: int) -> None:
        """Say that so many rows are done, over all processes."""
        (self.progress or silent)(self.what, done, self.total)


@dataclass
class Subject:
    """A model as it is evaluated.

    Attributes:
        model: adapters attached; `adapters_off` makes it the baseline.
        renderer: turns a row into a prompt and a reference in the recipe's own format.
        rows: the held-out rows of the recipe, or None when it names none.
        stop_ids: tokens that end a generation.
        pad_id: fills short rows; always masked, so any token that is not a stop token does.
        batch_tokens: size of an evaluation batch, padding and tokens still to be generated included.
        should_stop: polled between batches, and between generated tokens.
        progress: told how far a task is.
        team: the processes that score it together, each its share of the batches.
        data_seed: of the rows that `take` draws from a task's own source.
        most_new: tokens of an answer at most, whatever a task asks for: what is only tried needs few.
    """

    model: CausalLM
    tokenizer: Tokenizer
    renderer: Renderer
    rows: Rows | None
    stop_ids: set[int]
    pad_id: int
    batch_tokens: int
    should_stop: Callable[[], bool] = stop.wanted
    progress: Progress | None = None
    team: Team = ALONE
    data_seed: int = 0
    most_new: int | None = None

    @property
    def hf(self) -> HF:
        """The transformers model."""
        return self.model.hf

    def poll(self, done: int, total: int) -> None:
        """Stop here when asked to.

        Raises:
            EvaluationStopped: a signal came; the scores so far are dropped.
        """
        if self.asked_to_stop():
            raise EvaluationStopped(done, total)

    def asked_to_stop(self) -> bool:
        """Whether to stop here; processes that go in step stop in the same place."""
        stop = self.should_stop()
        return bool(self.team.largest(stop)) if self.team.in_step else stop

    def watch(self, what: str, total: int) -> Watch:
        """The display and the stop signal for so many rows of `what`."""
        return Watch(what, total, self.asked_to_stop, self.progress)

    def check_features(self, given: Sequence[Features] | None, what: str) -> None:
        """Refuse to pass rows through the adapters whose features nobody can say, where they go by them.

        Args:
            given: of every row.
            what: has no rows.

        Raises:
            UsageError: names the columns.
        """
        if given is None and self.model.features and next(adapted(self.hf))[1].enabled:
            columns = ", ".join(dict.fromkeys(one.partition("=")[0] for one in self.model.features))
            raise UsageError(
                f"{what}: the adapter goes by {columns} of a row, which are not given there; use lrft generate with a "
                "file of rows that have them, or tasks on such rows"
            )

    @property
    def positions(self) -> int | None:
        """How many positions the model has; None of a model without a limit."""
        return positions_of(self.hf.config.get_text_config())

    def check_lengths(self, lengths: Sequence[int], where: Callable[[int], str] = "row {}".format) -> None:
        """Refuse rows that need more positions than the model has.

        Args:
            lengths: tokens of each row, those still to be generated included.
            where: names a row in the message.

        Raises:
            DataError: names the first such row.
        """
        check_lengths(self.hf, lengths, where, "shorten the row, or lower max_new_tokens where it generates")

    def decode(self, tokens: Sequence[int]) -> str:
        """Text of generated tokens, special ones left out."""
        return str(self.tokenizer.decode(list(tokens), skip_special_tokens=True))
