r"""MATH and its like: the answer stands in `\boxed{...}`."""

from __future__ import annotations

from collections.abc import Callable

from lrft.evaluation.subject import Subject
from lrft.evaluation.tasks._answers import greedy_answers, thinking
from lrft.evaluation.tasks._boxed import last_boxed, normalised
from lrft.evaluation.tasks._task import OfRows, TaskResult, each, share
from lrft.registry.axes import TASKS
from lrft.registry.config import Field, Literal
from lrft.registry.errors import DataError, MissingExtra


@TASKS.register
class Math(OfRows):
    r"""The answer in the last `\boxed{...}` against that of the reference, after greedy generation.

        accuracy = mean over rows of [boxed(output) and boxed(reference) are the same answer]

    Prompt: `math-boxed-1`: the row in the recipe's format, or in the task's own `format`, with no solved examples
    before it (zero-shot). Rows are those of `data.eval`, or the task's own `data`. At most `max_new_tokens` tokens are
    generated.
    Score: with `same: text` two answers are the same when they become one text: spaces, `\left`, `\right`, degrees,
    dollars, percent signs, units in `\text{...}` at the end, commas between groups of three and a leading `x =` are
    dropped; `\dfrac` and `\tfrac` are `\frac`; `\frac12`, `1/2` and 0.5 are `\frac{1}{2}`; zeros at the end of decimals
    do not count. With `same: value` the library math-verify compares the values (the extra `math`). An output without
    `\boxed` is wrong; `boxed` is the share that has one, `unstopped` that of outputs cut at the limit.
    Source: Hendrycks et al., "Measuring Mathematical Problem Solving With the MATH Dataset", 2021, arXiv 2103.03874;
    the rule of `same: text` is after their `is_equiv`, and goes beyond it in commas, decimals and `\text`.
    """

    aliases = {
        "math_boxed hendrycks_math minerva_math math500 math_500": "tasks: [math]",
        "math_verify": "tasks: [{method: math, same: value}]",
    }

    version = "math-boxed-1"
    better = {"accuracy": "higher", "boxed": "higher", "unstopped": "lower"}
    right_is = "accuracy"

    class Config(OfRows.Config):
        max_new_tokens: int = Field(512, gt=0, description="longest answer")
        same: Literal["text", "value"] = Field(
            "text", description="compare normalised texts, or values by math-verify"
        )

    config: Config

    def run(self, subject: Subject, limit: int | None) -> TaskResult:
        """Generate, take what is boxed, compare."""
        rows = self.rows(subject, limit)
        renderer = self.renderer(subject)
        gold = each(rows, lambda row: gold_answer(renderer.reference(row)))
        same = same_value() if self.config.same == "value" else same_text
        answers = greedy_answers(subject, rows, renderer, self.config.max_new_tokens, self.name)
        found = [last_boxed(answer.output) for answer in answers]
        right = [given is not None and same(given, wanted) for given, wanted in zip(found, gold, strict=True)]
        metrics = {
            **share("accuracy", right),
            **share("boxed", [given is not None for given in found]),
            **share("unstopped", [not answer.stopped for answer in answers]),
        }
        samples = [
            answer.sample(correct, extracted=given, gold=wanted)
            for answer, correct, given, wanted in zip(answers, right, found, gold, strict=True)
        ]
        protocol = thinking([answer.question for answer in answers])
        return self.result(subject, rows, metrics, samples, **protocol)


def gold_answer(reference: str) -> str:
    """What the reference's last box holds.

    Raises:
        DataError: there is no box.
    """
    found = last_boxed(reference)
    if found is None or not normalised(found):
        raise DataError(
            "the reference has no \\boxed{...}; where the answer is a column of its own, write a format such as "
            "{method: columns, prompt: '{problem}', completion: '\\boxed{{{answer}}}'}"
        )
    return found


def same_text(given: str, wanted: str) -> bool:
    """Whether two answers are written the same once normalised."""
    return normalised(given) == normalised(wanted)


def same_value() -> Callable[[str, str], bool]:
    """The comparison of math-verify.

    Raises:
        MissingExtra: it is not installed; the message holds the install line.
    """
    try:
        from math_verify import parse, verify
    except ImportError:
        raise MissingExtra(
            "eval.tasks: same: value compares by math-verify; install it with `pip install 'lrft[math]'`, or write "
            "same: text"
        ) from None

    def same(given: str, wanted: str) -> bool:
        ours, theirs = (parse(f"\\boxed{{{text}}}") for text in (wanted, given))
        return bool(verify(ours, theirs))

    return same
