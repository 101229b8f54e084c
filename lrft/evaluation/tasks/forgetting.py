"""What training cost elsewhere: loss on a kept corpus, and multiple choice, before and after."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

from lrft.data.eval_batches import eval_batches
from lrft.evaluation.before import as_before
from lrft.evaluation.intervals import bootstrap, mcnemar
from lrft.evaluation.loss import perplexity, row_losses
from lrft.evaluation.subject import Subject
from lrft.evaluation.tasks._encoded import encode_rows
from lrft.evaluation.tasks._task import Task, TaskResult
from lrft.evaluation.tasks.multiple_choice import MultipleChoice
from lrft.registry.axes import FORMATS, TASKS
from lrft.registry.config import Choice, Field, FormatConfig, MethodConfig, Source
from lrft.registry.errors import DataError

Row = tuple[float, float, int]


@TASKS.register
class Forgetting(Task):
    """What training cost on a corpus that it did not learn: loss and multiple choice, before and after.

        loss_change = loss_after - loss_before,  ratio = exp(loss_change)
        acc_change  = acc_after - acc_before

    with the losses in nats per supervised token, every token weighing the same, and acc the share of rows whose gold
    label has the largest log p of its sentence. Before is the base as it is stored, the adapters off.

    Prompt: `forgetting-1`: rows of `data` (by default those of `data.eval`) in the recipe's format or the task's own
    `format`, encoded as for training; those of `choices`, where given, as `multiple_choice` reads them, in
    `choices_format`.
    Score: `loss_change_low` and `loss_change_high` are a bootstrap over rows, the same of both, 2,000 draws, 95 %;
    `lost` and `gained` count the choices that were right before alone, and after alone, `mcnemar_p` is the exact test
    of the two. Base weights that trained have no before here; such runs are refused.
    Source: standard; perplexity on a held-back corpus as in Biderman et al., "LoRA Learns Less and Forgets Less", 2024.
    """

    aliases = {
        "catastrophic_forgetting forgetting_probe": "tasks: [forgetting]",
    }

    version = "forgetting-1"
    better = {"loss_change": "lower", "loss_after": "lower", "acc_change": "higher", "acc_after": "higher"}
    per_token = True

    class Config(MethodConfig):
        data: Source | None = Field(None, description="kept corpus; by default data.eval")
        format: Annotated[FormatConfig | None, Choice(FORMATS, optional=True)] = Field(
            None, description="format of these rows; by default data.format"
        )
        choices: Source | None = Field(None, description="multiple-choice rows to score too")
        choices_format: Annotated[FormatConfig | None, Choice(FORMATS, optional=True)] = Field(
            None, description="format of the choices; by default data.format"
        )

    config: Config

    def run(self, subject: Subject, limit: int | None) -> TaskResult:
        """Losses of both models on the same batches, then the choices of both."""
        rows = self.rows(subject, limit)
        encoded, _ = encode_rows(subject, rows, self.renderer(subject, subject.renderer.too_long))
        kept = [row for row in encoded if row.targets]
        if not kept:
            raise DataError(
                f"{self.name}: none of the {len(rows)} rows has a supervised token; check the format"
            )

        def losses() -> list[tuple[float, int]]:
            batches = eval_batches(kept, subject.batch_tokens, subject.pad_id)
            return row_losses(subject.model, batches, subject.team)

        with as_before(subject, self.name):
            before = losses()
        after = losses()
        pairs = [(old, new, n) for (old, n), (new, _) in zip(before, after, strict=True)]
        metrics = loss_scores(pairs)
        if self.config.choices is not None:
            metrics |= self._choices(subject, limit)
        return self.result(subject, rows, metrics, n=len(kept))

    def _choices(self, subject: Subject, limit: int | None) -> dict[str, float]:
        config = MultipleChoice.Config(
            method=MultipleChoice.name, data=self.config.choices, format=self.config.choices_format
        )
        task = MultipleChoice(config)
        with as_before(subject, self.name):
            before = task.run(subject, limit)
        after = task.run(subject, limit)
        right = [[bool(one["correct"]) for one in found.samples] for found in (before, after)]
        return choice_scores(*right)


def loss_scores(rows: Sequence[Row]) -> dict[str, float]:
    """The numbers of summed losses before and after, and tokens, of every row."""
    tokens = sum(n for _, _, n in rows)
    before, after = (sum(row[k] for row in rows) / tokens for k in (0, 1))
    low, high = bootstrap(rows, _change)
    return {
        "loss_before": before,
        "loss_after": after,
        "perplexity_before": perplexity(before),
        "perplexity_after": perplexity(after),
        "loss_change": after - before,
        "loss_change_low": low,
        "loss_change_high": high,
        "ratio": perplexity(after - before),
        "tokens": tokens,
    }


def choice_scores(before: Sequence[bool], after: Sequence[bool]) -> dict[str, float]:
    """The numbers of which rows were right before, and after."""
    n = len(before)
    lost = sum(old and not new for old, new in zip(before, after, strict=True))
    gained = sum(new and not old for old, new in zip(before, after, strict=True))
    return {
        "acc_before": sum(before) / n,
        "acc_after": sum(after) / n,
        "acc_change": (gained - lost) / n,
        "lost": lost,
        "gained": gained,
        "mcnemar_p": mcnemar(lost, gained),
    }


def _change(rows: Sequence[Row]) -> float:
    return sum(new - old for old, new, _ in rows) / sum(n for _, _, n in rows)
