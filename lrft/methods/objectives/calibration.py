"""Calibration tuning: a model learns to say how likely an answer of its own is to be right."""

from __future__ import annotations

import math
from contextlib import nullcontext

import torch
from torch import Tensor
from torch.nn import functional as F

from lrft.core.adapted import adapters_off
from lrft.core.batch import Batch
from lrft.core.objective import Objective, StepTotals
from lrft.core.run import LanguageModel, Run
from lrft.methods.objectives._means import record_means
from lrft.methods.objectives._reference import check_reference, states_of
from lrft.ops.summed import sum_in_chunks
from lrft.registry.axes import OBJECTIVES
from lrft.registry.config import Field, Iterator, Literal, MethodConfig, Problem, RecipeView
from lrft.registry.errors import DataError


@OBJECTIVES.register
class Calibration(Objective):
    """Taught to know what it does not know: whether an answer is right is asked after it, and the reply learnt.

        c    = softmax(z_no, z_yes),  z the logits of both replies' first tokens where the reply is predicted
        loss = sum over rows of -log c[grade] + `consistency` sum over answer tokens t of D(p_t, q_t)
        D    = (KL(p || m) + KL(q || m)) / 2, m = (p + q) / 2      `divergence: jsd`
        D    = KL(p || q) `divergence: reverse`,  KL(q || p) `divergence: forward`

    with grade whether the row's answer is right (its judgement), p the model's distribution over the vocabulary, q that
    of this model with its adapters off, in evaluation mode and without gradient. With `label_smoothing` e the grade is
    1 - e / 2 of one reply and e / 2 of the other. The loop divides by the rows of the step. Every row is two texts, the
    answer and the answer with the question after it (`data.format.query`). The confidence in an answer is c[yes]; the
    task `confidence` scores it, by ECE, AUROC and Brier score.

    Shapes: z two numbers a row, p, q (answer tokens, vocabulary), of which one chunk exists at a time; the loss one
    number. At step 0 the divergence is 0, and c what the base model says.
    Trains: what the adapter trains, adds no parameter and keeps no state. Records, over this process's rows of the step
    (`graded`): grade_loss, the mean of -log c[grade]; grade_accuracy, the share with c[grade] > 1/2.
    Source: Kapoor et al., "Large Language Models Must Be Taught to Know What They Don't Know", NeurIPS 2024, arXiv
    2406.08391, and the authors' code: query and replies i, ii, two-token softmax, sums over tokens and means over rows;
    LoRA r 8, alpha 32, dropout .1, lr 1e-4, cosine.
    Departures: settled here: `consistency` is 1, which the authors' script leaves at 0. The divergence is on the answer
    that is graded, where the code takes the one that is right. The answers are to be the base model's own, which
    generates them (`lrft generate`); who grades them is left to the user. The probe on hidden states is `objective:
    classify` on question and answer. No temperature is fitted afterwards.
    """

    aliases = {
        "calibration_tuning uncertainty_tuning": "objective: calibration\ndata: {format: {method: unpaired, query: "
        '"Is the proposed answer correct?\\nChoices:\\n(i): no\\n(ii): yes\\nAnswer:"}}',
    }
    provides = {"backward", "replies"}
    requires = {"adapters", "judged", "fixed_base", "beside_base"}

    config: Config

    class Config(MethodConfig):
        consistency: float = Field(
            1.0, ge=0, description="weight of the divergence from the base on the answers; kappa"
        )
        divergence: Literal["jsd", "forward", "reverse"] = "jsd"
        label_smoothing: float = Field(0.0, ge=0, lt=1, description="share of a grade that is spread evenly")

        def clashes(self, recipe: RecipeView) -> Iterator[Problem]:
            """The rows ask the question."""
            form = recipe["data.format"]
            if not isinstance(form, dict) or form.get("query") is None:
                message = "is null, and calibration learns the reply to whether an answer is right; write a question"
                yield Problem("data.format.query", message)

    def __call__(self, model: LanguageModel, batch: Batch, run: Run | None = None) -> Tensor:
        """Summed loss over the rows of the batch.

        Raises:
            DataError: the rows are not two texts each.
            RecipeError: weights of the base train, so the base is no reference.
        """
        if len(batch.documents) != 2 * len(batch.examples):
            raise DataError(
                f"objective.method: calibration learns replies to a question after each answer, but "
                f"{len(batch.examples)} rows hold {len(batch.documents)} texts; write the "
                "query in the format of every source"
            )
        check_reference(run, "calibration")
        reference = None
        if self.config.consistency:
            reference = states_of(model, model, batch)
        rows = batch.supervised_rows(model.hidden(batch))
        counts = batch.document_sums(torch.ones_like(batch.targets))
        first = (counts.cumsum(0) - counts)[1::2]  # target of each second text
        loss = self._graded(model, rows.index_select(0, first), batch.targets.index_select(0, first), run)
        if reference is None:
            return loss
        answers = torch.arange(len(counts), device=counts.device) % 2 == 0
        kept = answers.repeat_interleave(counts, output_size=len(rows)).nonzero()[:, 0]
        return loss + self.config.consistency * self._drift(
            model, rows.index_select(0, kept), reference.index_select(0, kept)
        )

    def divisor(self, batches: StepTotals) -> int:
        return batches.examples

    def _graded(self, model: LanguageModel, rows: Tensor, given: Tensor, run: Run | None) -> Tensor:
        """Cross-entropy of the replies, (n, d) and (n,) -> float32 scalar."""
        assert self.replies is not None, "the replies are found before the first loss"
        logits = []

        def part(hidden: Tensor, wanted: Tensor) -> Tensor:
            z = model.head.logits(hidden).float()[:, list(self.replies or ())]
            logits.append(z.detach())
            return F.cross_entropy(z, wanted, reduction="sum", label_smoothing=self.config.label_smoothing)

        grades = (given == self.replies[1]).long()
        loss = sum_in_chunks(part, model.head, rows, grades)
        if run is not None:
            _record(run, torch.cat(logits), grades)
        return loss

    def _drift(self, model: LanguageModel, rows: Tensor, reference: Tensor) -> Tensor:
        """The divergence from the base over some positions, (n, d) twice -> float32 scalar."""
        assert isinstance(model, torch.nn.Module), "adapters sit in a module"
        plain = model.head.is_frozen_dense and model.head.rows is None

        def part(hidden: Tensor, before: Tensor) -> Tensor:
            with torch.no_grad(), nullcontext() if plain else adapters_off(model):
                q = model.head.logits(before).float().log_softmax(-1)
            return divergence(model.head.logits(hidden).float().log_softmax(-1), q, self.config.divergence)

        return sum_in_chunks(part, model.head, rows, reference)


def divergence(p: Tensor, q: Tensor, kind: str) -> Tensor:
    """Summed divergence of log-probabilities, (n, V) twice -> scalar."""
    if kind == "forward":
        return F.kl_div(p, q, reduction="sum", log_target=True)
    if kind == "reverse":
        return F.kl_div(q, p, reduction="sum", log_target=True)
    m = torch.logaddexp(p, q) - math.log(2)
    return (
        F.kl_div(m, p, reduction="sum", log_target=True) + F.kl_div(m, q, reduction="sum", log_target=True)
    ) / 2


def _record(run: Run, logits: Tensor, grades: Tensor) -> None:
    """How well grades are said, over the step so far."""
    right = logits.log_softmax(-1).gather(1, grades[:, None])[:, 0]
    sums = {"grade_loss": -right.sum(), "grade_accuracy": (right > -math.log(2)).float().sum()}
    record_means(run, "graded", len(grades), sums)
