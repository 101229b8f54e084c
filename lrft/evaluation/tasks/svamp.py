"""Word problems with one number as the answer: SVAMP, AddSub, MultiArith, MAWPS."""

from __future__ import annotations

from decimal import Decimal
from functools import partial

from lrft.core.written import NUMBER, last_number, value_of
from lrft.data.example import Row
from lrft.evaluation.subject import Subject
from lrft.evaluation.tasks._answers import greedy_answers, thinking
from lrft.evaluation.tasks._task import OfRows, TaskResult, each, share
from lrft.registry.axes import TASKS
from lrft.registry.config import Field
from lrft.registry.errors import DataError

NEAR = Decimal("0.001")


@TASKS.register
class SVAMP(OfRows):
    """The last number of the output against the number in a column, after greedy generation.

        accuracy = mean over rows of [|last number of the output - number in the column `answer`| <= 0.001]

    Prompt: `svamp-last-number-1`: the row in the recipe's format, or in the task's own `format`, with no solved
    examples before it (zero-shot). Rows are those of `data.eval`, or the task's own `data`. At most `max_new_tokens`
    tokens are generated.
    Score: `accuracy` by the rule above, a number being read as in `gsm8k`; an output without a number is wrong.
    `unstopped` is the share of outputs that reached `max_new_tokens` without a stop token.
    Source: Patel et al., "Are NLP Models really able to Solve Simple Math Word Problems?", 2021, arXiv 2103.07191; the
    tolerance, and rows with a column `answer`, as in LLM-Adapters (AGI-Edgerunners/LLM-Adapters).
    """

    aliases = {
        "addsub multiarith mawps singleeq word_problems": "tasks: [svamp]",
    }

    version = "svamp-last-number-1"
    better = {"accuracy": "higher", "unstopped": "lower"}
    right_is = "accuracy"

    class Config(OfRows.Config):
        answer: str = Field("answer", min_length=1, description="column of the right number")
        max_new_tokens: int = Field(256, gt=0, description="longest answer")

    config: Config

    def run(self, subject: Subject, limit: int | None) -> TaskResult:
        """Generate, take the last number, compare."""
        rows = self.rows(subject, limit)
        gold = each(rows, partial(gold_number, column=self.config.answer))
        renderer = self.renderer(subject)
        answers = greedy_answers(subject, rows, renderer, self.config.max_new_tokens, self.name)
        found = [last_number(answer.output) for answer in answers]
        right = [
            number is not None and abs(number - wanted) <= NEAR
            for number, wanted in zip(found, gold, strict=True)
        ]
        metrics = {
            **share("accuracy", right),
            **share("unstopped", [not answer.stopped for answer in answers]),
        }
        samples = [
            answer.sample(correct, extracted=None if number is None else str(number), gold=str(wanted))
            for answer, correct, number, wanted in zip(answers, right, found, gold, strict=True)
        ]
        protocol = thinking([answer.question for answer in answers])
        return self.result(subject, rows, metrics, samples, **protocol)


def gold_number(row: Row, column: str) -> Decimal:
    """The number in a column, which holds one as a number or a text.

    Raises:
        DataError: it holds none.
    """
    held = str(row.get(column, "")).strip()
    found = NUMBER.fullmatch(held)
    if found is None:
        known = ", ".join(sorted(row))
        raise DataError(
            f"column {column!r} holds no number ({held!r}); the row has {known}, and `answer` of the task names one"
        )
    return value_of(found)
