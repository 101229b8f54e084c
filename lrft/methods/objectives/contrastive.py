"""Contrastive learning of text embeddings: a query is nearer to its own passage than to others."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from lrft.core.batch import Batch
from lrft.core.notes import say
from lrft.core.objective import Objective, Passes, StepTotals
from lrft.core.run import LanguageModel, Run
from lrft.methods.objectives._info_nce import Told, info_nce
from lrft.registry.axes import OBJECTIVES
from lrft.registry.config import Field, Literal, MethodConfig, Problem, RecipeView
from lrft.registry.errors import RecipeError

Held = tuple[Tensor, tuple[tuple[int, ...], ...]]
ALONE = "had no passage to be told from, and learnt nothing"


@dataclass(frozen=True)
class _Part:
    """What the loss of the whole step is to a micro-batch: the share of its queries, the gradient at its embeddings."""

    loss: Tensor
    gradient: Tensor


@OBJECTIVES.register
class Contrastive(Objective):
    """InfoNCE over the texts of a step: of all passages, a query's own is to be the most similar.

        e(x)   = h / ||h||_2
        s(q,p) = e(q) . e(p) / `temperature`
        loss   = -sum over queries q of log( exp s(q, p_q) / (exp s(q, p_q) + sum over n in N_q of exp s(q, n)) )

    with h the hidden state of a text's last token, its end-of-text token, after the final norm; p_q the positive
    passage of q, N_q the other passages of the step, positives and hard negatives of all rows (of the micro-batch alone
    with `in_batch: micro_batch`), but for those with the very tokens of p_q, or of the positive of an equal query,
    which are none. The loop divides by the queries of the step.

    Shapes: e (texts, d) in float32 whatever `model.dtype`, one text a document; s (queries, passages). At step 0 the
    texts lie as the base puts them, mostly close together, so the loss is near the log of the passages of a step.
    Where a step is several micro-batches, over accumulation or processes, each is embedded once more before, without
    gradients, and the gradient at the embeddings is kept (queries and passages times d numbers): the loss and the
    gradients are those of one big batch, for one forward pass more. `in_batch: micro_batch` is without it.
    Trains: what the adapter trains. The head of the vocabulary gets no gradient. Records, over this process's queries
    of the step: contrastive_accuracy, the share whose own passage is more similar than every negative;
    contrastive_negatives, the mean size of N_q; queries_alone, how many have none and so a loss of 0, which is also
    said once.
    Source: van den Oord et al., 2018, arXiv 1807.03748; on decoders, from the last token: Wang et al., "Improving Text
    Embeddings with Large Language Models", 2024, arXiv 2401.00368, whose temperature is the default, and Ma et al.,
    "Fine-Tuning LLaMA for Multi-Stage Text Retrieval", 2023, arXiv 2310.08319. Over several micro-batches: Gao et al.,
    "Scaling Deep Contrastive Learning Batch Size under Memory Limited Setup", 2021, arXiv 2101.06983.
    Departures: passages that would be false negatives by their very tokens are left out. Settled here, from the papers:
    the loss is of queries over passages, in one direction.
    """

    aliases = {
        "infonce info_nce multiple_negatives_ranking mnrl in_batch_negatives embedding retriever dense_retrieval": (
            "objective: contrastive\ndata: {format: retrieval}\neval: {tasks: [retrieval]}"
        ),
    }
    provides = {"backward", "compared"}
    requires = {"passages"}

    config: Config

    class Config(MethodConfig):
        temperature: float = Field(0.02, gt=0, description="what similarities are divided by")
        in_batch: Literal["step", "micro_batch"] = Field(
            "step",
            description="whose passages are negatives too: those of the whole step, or of the micro-batch",
        )

        def clashes(self, recipe: RecipeView) -> Iterator[Problem]:
            """One row at a time, without hard negatives, is told from nothing."""
            rows, accumulated = recipe["train.batch_size"], recipe["train.gradient_accumulation"]
            together = self.in_batch == "step" and accumulated != 1
            form = recipe["data.format"]
            hard = form is None or (isinstance(form, dict) and form.get("negatives") not in (None, []))
            if rows == 1 and not together and not hard and recipe["train.packing"] is False:
                message = (
                    "a query alone, without hard negatives, has no passage to be told from; write 2 or more, or "
                    "name data.format.negatives"
                )
                yield Problem("train.batch_size", message)

    def __init__(self, config: MethodConfig) -> None:
        super().__init__(config)
        self._ahead: deque[_Part] = deque()
        self._said = False

    def __call__(self, model: LanguageModel, batch: Batch, run: Run | None = None) -> Tensor:
        """Summed loss of the batch's queries.

        Raises:
            RecipeError: in calibration, where no query has a passage to be told from.
        """
        assert batch.texts, "rows without passages are refused with the recipe"
        embedded = model.embeddings(batch)
        if self._ahead:
            part = self._ahead.popleft()
            moved = (embedded * part.gradient).sum()
            return part.loss + (moved - moved.detach())
        told = info_nce(embedded, batch.texts, self.config.temperature)
        if run is not None:
            self._record(run, told)
        elif not bool(told.negatives.any()):
            message = (
                f"no query of a micro-batch that is measured before training {ALONE}; write 2 or more, or name hard "
                "negatives"
            )
            raise RecipeError(message, "train.batch_size")
        return told.losses.sum()

    def whole_step(self, run: Run, totals: StepTotals, passes: Passes) -> None:
        self._ahead.clear()
        if self.config.in_batch != "step" or totals.micro_batch_count == 1:
            return
        with torch.no_grad():
            mine = [(run.model.embeddings(batch), batch.texts, counts) for batch, counts in passes()]
        sent = [(embedded.cpu(), texts) for embedded, texts, counts in mine if counts]
        held: list[list[Held]] = run.team.gather(sent)
        whole = [one for rank, part in enumerate(held) if rank != run.team.rank for one in part]
        before = [(embedded, texts) for embedded, texts, counts in mine if counts]
        self._ahead.extend(self._parts(run, [*before, *whole], mine))

    def _parts(
        self, run: Run, whole: list[Held], mine: list[tuple[Tensor, tuple[tuple[int, ...], ...], bool]]
    ) -> Iterator[_Part]:
        """What the loss of the whole step is for each micro-batch of this process, whose own come first in `whole`."""
        table = torch.cat([embedded.to(run.device) for embedded, _ in whole])
        texts = [row for _, rows in whole for row in rows]
        with torch.enable_grad():
            table.requires_grad_()
            told = info_nce(table, texts, self.config.temperature)
            gradient = torch.autograd.grad(told.losses.sum(), table)[0]
        queries = sum(len(rows) for _, rows, counts in mine if counts)
        losses = told.losses.detach()
        self._record(run, Told(losses[:queries], told.found[:queries], told.negatives[:queries]))
        row = place = 0
        for embedded, rows, counts in mine:
            if not counts:
                yield _Part(losses.new_zeros(()), torch.zeros_like(embedded))
                continue
            yield _Part(losses[row : row + len(rows)].sum(), gradient[place : place + len(embedded)])
            row, place = row + len(rows), place + len(embedded)

    def _record(self, run: Run, told: Told) -> None:
        """Means over the step so far; what is on the device stays there: nothing here waits for it."""
        new = len(told.negatives)
        if not new:
            return
        alone = int((told.negatives == 0).sum())
        if alone and not self._said:
            self._said = True
            say(
                f"step {run.step + 1}: {alone} of {new} queries {ALONE}; queries_alone counts them in every step"
            )
        before = run.metrics.get("queries", 0)
        total = before + new
        means = {
            "contrastive_accuracy": told.found.float().sum(),
            "contrastive_negatives": float(told.negatives.sum()),
        }
        found = {name: (run.metrics.get(name, 0.0) * before + value) / total for name, value in means.items()}
        run.record(queries=total, queries_alone=run.metrics.get("queries_alone", 0) + alone, **found)

    def divisor(self, batches: StepTotals) -> int:
        return batches.examples
