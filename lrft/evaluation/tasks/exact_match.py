"""Exact match of the generated text with the reference, as text or as JSON."""

from __future__ import annotations

from lrft.core.written import check_json, same_json, same_text
from lrft.evaluation.subject import Subject
from lrft.evaluation.tasks._answers import greedy_answers, thinking
from lrft.evaluation.tasks._task import OfRows, TaskResult, each, share
from lrft.registry.axes import TASKS
from lrft.registry.config import Field, Literal


@TASKS.register
class ExactMatch(OfRows):
    """The share of outputs equal to the reference, after greedy generation.

        exact_match = mean over rows of [strip(output) = strip(reference)]

    Prompt: `exact-match-1`: the row in the recipe's format, or in the task's own `format`, with no solved examples
    before it (zero-shot). Rows are those of `data.eval`, or the task's own `data`. At most `max_new_tokens` tokens are
    generated.
    Score: white space at both ends is dropped (`compare: text`). With `compare: json` both sides are parsed and the
    values compared, so key order and spacing do not count, but types do; an output that is no JSON is wrong.
    `exact_match` is that share, `stopped` the share of outputs that ended in a stop token.
    Source: none needed; the comparison is stated above in full.
    """

    aliases = {
        "em exact exact_match_accuracy": "tasks: [exact_match]",
    }

    version = "exact-match-1"
    better = {"exact_match": "higher", "stopped": "higher"}
    right_is = "exact_match"

    class Config(OfRows.Config):
        max_new_tokens: int = Field(256, gt=0, description="longest answer")
        compare: Literal["text", "json"] = Field(
            "text", description="compare the texts, or the JSON values they hold"
        )

    config: Config

    def run(self, subject: Subject, limit: int | None) -> TaskResult:
        """Generate and compare."""
        rows = self.rows(subject, limit)
        renderer = self.renderer(subject)
        if self.config.compare == "json":
            each(rows, lambda row: check_json(renderer.reference(row)))
        answers = greedy_answers(subject, rows, renderer, self.config.max_new_tokens, self.name)
        equal = same_json if self.config.compare == "json" else same_text
        right = [equal(answer.output, answer.reference) for answer in answers]
        metrics = {**share("exact_match", right), **share("stopped", [answer.stopped for answer in answers])}
        samples = [answer.sample(correct) for answer, correct in zip(answers, right, strict=True)]
        protocol = thinking([answer.question for answer in answers])
        return self.result(subject, rows, metrics, samples, **protocol)
