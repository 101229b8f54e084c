"""`Task`: a score on held-out rows, and what its author has to fill in."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Annotated, ClassVar, TypeVar

from lrft.data.encoded import TooLong
from lrft.data.example import Row
from lrft.data.rows import Rows, placed
from lrft.data.sources import read_rows
from lrft.data.tokenize import Renderer
from lrft.evaluation.subject import Subject
from lrft.registry.axes import FORMATS
from lrft.registry.config import Choice, Field, FormatConfig, MethodConfig, Source
from lrft.registry.errors import RecipeError
from lrft.registry.json import Json

T = TypeVar("T")


@dataclass(frozen=True)
class TaskResult:
    """What a task found.

    Attributes:
        metrics: name -> number; every accuracy `x` has its standard error beside it as `x_stderr`.
        n: rows scored.
        samples: per row the prompt, output, reference and whether it was correct; empty without any to show.
        version: names the prompt and the scoring rule; changes whenever either does.
        settings: what else decides the numbers.
    """

    metrics: dict[str, float]
    n: int
    samples: list[dict[str, Json]] = field(default_factory=list)
    version: str = ""
    settings: dict[str, Json] = field(default_factory=dict)


class Task:
    """Scores a subject on the recipe's held-out rows, or on its config's own `data` and `format`.

    Attributes:
        better: metrics that say how good the model is -> `higher` or `lower`, whichever is better. A recipe may choose
            one of them as `train.metric`, and a training with `train.eval_tasks_every` records them.
        right_is: the score that is the share of the rows whose samples say `correct`, or None.
        per_token: they are means over tokens, so that models with other tokens do not compare by them.
    """

    name: ClassVar[str]
    version: ClassVar[str]
    provides: ClassVar[set[str]] = set()
    requires: ClassVar[set[str]] = set()
    better: ClassVar[dict[str, str]] = {}
    per_token: ClassVar[bool] = False
    right_is: ClassVar[str | None] = None
    Config: ClassVar[type[MethodConfig]] = MethodConfig

    def __init__(self, config: MethodConfig) -> None:
        self.config = config

    def run(self, subject: Subject, limit: int | None) -> TaskResult:
        """Score the first `limit` rows, or all.

        Raises:
            DataError: a row that cannot be scored, by file and line.
            EvaluationStopped: a signal came.
        """
        raise NotImplementedError(f"{type(self).__name__} declares no scoring")

    def rows(self, subject: Subject, limit: int | None) -> Rows:
        """The rows to score: the task's own, or the recipe's held-out ones; of several sources `limit` of each.

        Raises:
            RecipeError: neither exists.
        """
        own = getattr(self.config, "data", None)
        rows = subject.rows if own is None else read_rows(own, "eval", subject.data_seed)
        if rows is None:
            raise RecipeError(
                f"no held-out rows for {self.name}; name some here, or as `data` of the task", "data.eval"
            )
        return rows.first(limit)

    def renderer(self, subject: Subject, too_long: TooLong = "error") -> Renderer:
        """Renders the recipe's format, or the task's own, and by default never cuts or drops a row."""
        ours, chosen = subject.renderer, getattr(self.config, "format", None)
        made = ours.format if chosen is None else FORMATS.get(chosen.method)(chosen)
        return Renderer(
            ours.tokenizer,
            made,
            ours.stop_ids,
            ours.max_length,
            too_long,
            ours.today,
            ours.stride,
            ours.labels,
            ours.features,
        )

    def result(
        self,
        subject: Subject,
        rows: Rows,
        metrics: dict[str, float],
        samples: Sequence[dict[str, Json]] = (),
        n: int | None = None,
        **more: Json,
    ) -> TaskResult:
        """The result with everything that decides its numbers beside it, `more` being what only the rows show."""
        settings = {
            **self.config.model_dump(mode="json"),
            "format": self.renderer(subject).format.config.model_dump(mode="json"),
            "rows": rows.origin,
            "rows_fingerprint": rows.fingerprint,
            "batch_tokens": subject.batch_tokens,
            "stop_ids": sorted(subject.stop_ids),
            **more,
        }
        return TaskResult(metrics, len(rows) if n is None else n, list(samples), self.version, settings)


class OfRows(Task):
    """A task whose recipe may name rows of its own, and their format."""

    class Config(MethodConfig):
        data: Source | None = Field(None, description="rows to score; by default data.eval")
        format: Annotated[FormatConfig | None, Choice(FORMATS, optional=True)] = Field(
            None, description="format of these rows; by default data.format"
        )

    config: Config


def each(rows: Rows, function: Callable[[Row], T]) -> list[T]:
    """`function(row)` for every row.

    Raises:
        DataError: what `function` raised, with the row's place in front.
    """
    made = []
    for index, row in enumerate(rows):
        with placed(rows, index):
            made.append(function(row))
    return made


def share(name: str, values: Sequence[bool]) -> dict[str, float]:
    """The share of true values and its standard error, sample deviation / sqrt(n); nan for a single row."""
    n = len(values)
    mean = sum(values) / n
    error = math.sqrt(mean * (1 - mean) / (n - 1)) if n > 1 else math.nan
    return {name: mean, f"{name}_stderr": error}
