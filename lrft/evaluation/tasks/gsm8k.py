"""GSM8K: grade-school mathematics, scored by the number the model arrives at."""

from __future__ import annotations

from decimal import Decimal

from lrft.core.written import NUMBER, last_number, value_of
from lrft.evaluation.subject import Subject
from lrft.evaluation.tasks._answers import greedy_answers, thinking
from lrft.evaluation.tasks._task import OfRows, TaskResult, each, share
from lrft.registry.axes import TASKS
from lrft.registry.config import Field
from lrft.registry.errors import DataError


@TASKS.register
class GSM8K(OfRows):
    """Exact match of the last number, after greedy generation.

        exact_match = mean over rows of [last number of the output = first number after the reference's last ####]

    Prompt: `gsm8k-last-number-1`: the row in the recipe's format, or in the task's own `format`, with no solved
    examples before it (zero-shot). Rows are those of `data.eval`, or the task's own `data`. At most `max_new_tokens`
    tokens are generated.
    Score: a number is digits with an optional sign, a `$` before or after the sign, commas between groups of three, and
    decimals; a dot that no digit follows ends the sentence. Compared as decimals, so 18 = 18.00 = $18. Fractions,
    exponents and units are not read. `exact_match` uses that rule; `exact_match_strict` wants the number directly after
    the output's first `####`; `unstopped` is the share of outputs that reached `max_new_tokens` without a stop token.
    Source: the data set of Cobbe et al., "Training Verifiers to Solve Math Word Problems", 2021, arXiv 2110.14168.
    """

    aliases = {
        "gsm": "tasks: [gsm8k]",
    }

    version = "gsm8k-last-number-1"
    better = {"exact_match": "higher", "exact_match_strict": "higher", "unstopped": "lower"}
    right_is = "exact_match"

    class Config(OfRows.Config):
        max_new_tokens: int = Field(256, gt=0, description="longest answer")

    config: Config

    def run(self, subject: Subject, limit: int | None) -> TaskResult:
        """Generate, extract, compare."""
        rows = self.rows(subject, limit)
        # Read before anything is generated: a bad row should not cost an hour.
        renderer = self.renderer(subject)
        gold = each(rows, lambda row: gold_number(renderer.reference(row)))
        answers = greedy_answers(subject, rows, renderer, self.config.max_new_tokens, self.name)
        found = [last_number(answer.output) for answer in answers]
        right = [number == wanted for number, wanted in zip(found, gold, strict=True)]
        strict = [
            marked_number(answer.output) == wanted for answer, wanted in zip(answers, gold, strict=True)
        ]
        metrics = {
            **share("exact_match", right),
            **share("exact_match_strict", strict),
            **share("unstopped", [not answer.stopped for answer in answers]),
        }
        samples = [
            answer.sample(correct, extracted=None if number is None else str(number))
            for answer, correct, number in zip(answers, right, found, strict=True)
        ]
        protocol = thinking([answer.question for answer in answers])
        return self.result(subject, rows, metrics, samples, **protocol)


def marked_number(text: str) -> Decimal | None:
    """The number directly after the first `####`, spaces and a `$` apart, or None."""
    _, marker, rest = text.partition("####")
    found = NUMBER.match(rest.lstrip(" $")) if marker else None
    return value_of(found) if found else None


def gold_number(reference: str) -> Decimal:
    """The first number after the reference's last `####`.

    Raises:
        DataError: there is none.
    """
    _, marker, rest = reference.rpartition("####")
    found = NUMBER.search(rest) if marker else None
    if found is None:
        raise DataError(
            "the reference has no number after `####`; gsm8k scores answers that end in `#### 42`"
        )
    return value_of(found)
