"""Loss and perplexity of the held-out rows."""

from __future__ import annotations

from typing import Annotated

from lrft.data.steps import eval_batches
from lrft.data.tokenize import encode_all
from lrft.evaluation.loss import held_out_loss
from lrft.evaluation.subject import Subject
from lrft.evaluation.tasks._task import Task, TaskResult
from lrft.registry.axes import FORMATS, TASKS
from lrft.registry.config import Choice, Field, FormatConfig, MethodConfig, Source


@TASKS.register
class Loss(Task):
    """Mean cross-entropy of the held-out rows, in nats per supervised token, and its exponential.

        loss = -(sum over supervised tokens of log p(token | all before it)) / (number of supervised tokens)
        perplexity = exp(loss)

    Prompt: `loss-1`: the row in the recipe's format, or in the task's own `format`, encoded as for training. Rows are
    those of `data.eval`, or the task's own `data`.
    Score: the tokens that training would supervise, every token weighing the same. Rows that `data.too_long` drops, and
    rows without such a token, are left out and counted (`left_out`); cut rows are scored cut (`truncated`); `tokens`
    counts.
    Source: standard.
    """

    aliases = {
        "perplexity ppl eval_loss": "tasks: [loss]",
    }

    version = "loss-1"
    better = {"loss": "lower", "perplexity": "lower"}

    class Config(MethodConfig):
        data: Source | None = Field(None, description="rows to score; by default data.eval")
        format: Annotated[FormatConfig | None, Choice(FORMATS, optional=True)] = Field(
            None, description="format of these rows; by default data.format"
        )

    config: Config

    def run(self, subject: Subject, limit: int | None) -> TaskResult:
        """Encode as for training, then sum."""
        rows = self.rows(subject, limit)
        encoded = encode_all(rows, self.renderer(subject, subject.renderer.too_long))
        subject.check_lengths([len(row.input_ids) for row in encoded], rows.where)
        batches = eval_batches(encoded, subject.batch_tokens, subject.pad_id)
        found = held_out_loss(
            subject.model, batches, subject.asked_to_stop, subject.progress, len(rows), subject.team
        )
        metrics = {
            "loss": found.loss,
            "perplexity": found.perplexity,
            "tokens": found.tokens,
            "left_out": len(rows) - found.rows,
            "truncated": sum(row.truncated for row in encoded),
        }
        return self.result(subject, rows, metrics, n=found.rows)
