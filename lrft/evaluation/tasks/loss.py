"""Loss and perplexity of the held-out rows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from lrft.data.encoded import Encoded
from lrft.data.eval_batches import eval_batches
from lrft.data.rows import Rows
from lrft.evaluation.loss import LossResult, held_out_loss, together
from lrft.evaluation.subject import Subject
from lrft.evaluation.tasks._encoded import encode_rows
from lrft.evaluation.tasks._task import OfRows, TaskResult
from lrft.registry.axes import TASKS


@TASKS.register
class Loss(OfRows):
    """Mean cross-entropy of the held-out rows, in nats per supervised token, and its exponential.

        loss = -(sum over supervised tokens of log p(token | all before it)) / (number of supervised tokens)
        perplexity = exp(loss)

    Prompt: `loss-1`: the row in the recipe's format, or in the task's own `format`, encoded as for training. Rows are
    those of `data.eval`, or the task's own `data`.
    Score: the tokens that training would supervise, every token weighing the same. Rows that `data.too_long` drops, and
    rows without such a token, are left out and counted (`left_out`); cut rows are scored cut (`truncated`); `tokens`
    counts. Of several sources the loss of each is beside that of all (`loss/NAME`). Of documents that `data.too_long`
    cuts into windows every token is scored once.
    Of rows with labels it is the mean cross-entropy of their classes, or squared error of their numbers, and there is
    no perplexity; of pairs that a score head learns the mean of -log sigmoid(r_chosen - r_rejected - margin).
    Source: standard.
    """

    aliases = {
        "perplexity ppl eval_loss": "tasks: [loss]",
    }

    version = "loss-1"
    provides = {"any_model"}
    better = {"loss": "lower", "perplexity": "lower"}
    per_token = True

    def run(self, subject: Subject, limit: int | None) -> TaskResult:
        """Encode as for training, then sum."""
        rows = self.rows(subject, limit)
        encoded, of = encode_rows(subject, rows, self.renderer(subject, subject.renderer.too_long))
        scored = {index for index, row in zip(of, encoded, strict=True) if row.targets}
        parts = {name: self._scored(subject, some) for name, some in _by_source(rows, encoded, of).items()}
        found = together(parts) if len(parts) > 1 else next(iter(parts.values()))
        metrics = {
            "loss": found.loss,
            **({} if subject.model.labels else {"perplexity": found.perplexity}),
            "tokens": found.tokens,
            "left_out": len(rows) - len(scored),
            "truncated": sum(row.truncated for row in encoded),
        }
        if len(parts) > 1:
            metrics |= {f"loss/{name}": part.loss for name, part in parts.items()}
        return self.result(subject, rows, metrics, n=len(scored))

    def _scored(self, subject: Subject, encoded: Sequence[Encoded]) -> LossResult:
        batches = eval_batches(encoded, subject.batch_tokens, subject.pad_id)
        total = len(encoded)
        return held_out_loss(
            subject.model, batches, subject.asked_to_stop, subject.progress, total, subject.team
        )


def _by_source(rows: Rows, encoded: Sequence[Encoded], of: Sequence[int]) -> Mapping[str, Sequence[Encoded]]:
    """The rows of every source that has some to score; of one source all of them, whatever they hold."""
    if not rows.sources:
        return {"": encoded}
    found: dict[str, list[Encoded]] = {}
    for one, index in zip(encoded, of, strict=True):
        if one.targets:
            found.setdefault(rows.sources[rows.source(index)], []).append(one)
    return found or {"": encoded}
