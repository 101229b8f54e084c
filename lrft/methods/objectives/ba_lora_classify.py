"""BA-LoRA for labels: classification with three regularisers against what pretraining's bias and noise do to it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from lrft.core.batch import Batch
from lrft.core.callback import Callback
from lrft.core.objective import Objective
from lrft.core.run import LanguageModel, Run
from lrft.methods.objectives._directions import first_share
from lrft.methods.objectives._reference import base_alone
from lrft.ops.label_loss import label_losses
from lrft.registry.axes import OBJECTIVES
from lrft.registry.config import Field, MethodConfig, Problem, RecipeView


@OBJECTIVES.register
class BALoRAClassify(Objective, Callback):
    """Bias-alleviating LoRA for classification: scores that stay near the base's, vary, and have few directions.

        loss = sum over texts of -log softmax(z)[c] + n (`consistency` mean (z / |z| - y / |y|)^2
               + `diversity` sum over i != j of C_ij^2 / labels - `directions` (s_1 + ... + s_k) / (s_1 + s_2 + ...))

    with n the texts of a micro-batch, z = S h their scores, c their classes, y the scores of the base model: this one
    with its adapters off, in evaluation mode and without gradient, and with the score head S that the run began with.
    C is the covariance of the labels' scores over the n texts (divided by n - 1; with one text the term is left out),
    s the singular values of the scores (n, labels), falling, k = `k`. The mean is over texts and labels. The loop
    divides by the texts of the step, so that of one micro-batch it is the authors' loss.

    Shapes: z, y (n, labels) float32, S (labels, d); the loss one number. At step 0 y = z, so the first regulariser is 0
    (unless the start moves the model). One forward pass more than `classify`.
    Trains: what the adapter trains, and S; keeps the labels x d numbers of the S that it began with.
    Source: Chang et al., "BA-LoRA", 2024, arXiv 2408.04556 (understanding), and the authors' trainer, whose weights
    these are; with `init: pissa`, alpha = r.
    Departures: settled here: the base has no classifier, so y is of the head that the run drew, as the authors' second
    model would draw one of its own. Their code indexes singular values in a way that fails on scores; the share is over
    the whole micro-batch, as their text has it.
    """

    aliases = {
        "bias_alleviating_classification": "objective: ba_lora_classify\n"
        "model: {head: [LABEL, ...]}\ndata: {format: classify}\ninit: pissa",
    }
    provides = {"backward"}
    requires = {"labels", "score_head", "adapters", "fixed_base", "beside_base"}

    config: Config

    class Config(MethodConfig):
        consistency: float = Field(1e-4, ge=0, description="weight of the distance from the base's scores")
        diversity: float = Field(3e-4, ge=0, description="weight of the covariances of the labels' scores")
        directions: float = Field(
            1e-4, ge=0, description="weight of the share that the first singular values of the scores have"
        )
        k: int = Field(3, gt=0, description="how many singular values are the first")

        def clashes(self, recipe: RecipeView) -> Iterator[Problem]:
            """One label is a number, which has neither a direction nor another to vary with."""
            head = recipe["model.head"]
            labels = head.get("labels") if isinstance(head, dict) else head
            if isinstance(labels, list) and len(labels) == 1:
                message = "compares the scores of several labels; name more in model.head, or write objective: classify"
                yield Problem("objective.method", message)

    def __init__(self, config: MethodConfig) -> None:
        super().__init__(config)
        self.head: Tensor | None = None  # S as the run began with it

    def start(self, run: Run) -> None:
        if self.head is None:
            self.head = _head(run).clone()

    def state_dict(self) -> Mapping[str, object]:
        return {} if self.head is None else {"head": self.head}

    def kept_later(self, run: Run) -> Mapping[str, object]:
        return {"head": _head(run)}

    def load_state_dict(self, state: Any) -> None:
        self.head = state["head"]

    def __call__(self, model: LanguageModel, batch: Batch, run: Run | None = None) -> Tensor:
        assert batch.labels is not None, "rows without labels are refused with the recipe"
        config, z = self.config, model.scores(batch)
        loss = label_losses(z, batch.labels).sum() - len(z) * config.directions * first_share(z, config.k)
        with torch.no_grad(), base_alone(model):
            y = self._of_base(model, batch)
        near = F.mse_loss(F.normalize(z, dim=-1), F.normalize(y, dim=-1))
        loss = loss + len(z) * config.consistency * near
        if len(z) > 1:
            C = z.mT.cov()
            loss = loss + len(z) * config.diversity * (C - C.diag().diag()).square().sum() / len(C)
        return loss

    def _of_base(self, model: LanguageModel, batch: Batch) -> Tensor:
        """The scores by the head that the run began with; outside of a run by the one that there is."""
        if self.head is None:
            return model.scores(batch)
        return F.linear(
            batch.supervised_rows(model.hidden(batch)).float(), self.head.to(batch.input_ids.device)
        )


def _head(run: Run) -> Tensor:
    """The weight of the head that is scored with, which trains."""
    (head,) = (info.param for info in run.parameters if info.role == "head" and not info.site)
    return head.detach()
