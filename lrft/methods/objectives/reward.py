"""A reward model: of two answers to a prompt, the preferred one is scored higher."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from lrft.core.batch import Batch
from lrft.core.objective import Objective, StepTotals
from lrft.core.run import LanguageModel, Run
from lrft.methods.objectives._rewards import record_rewards
from lrft.ops.label_loss import pair_losses
from lrft.registry.axes import OBJECTIVES
from lrft.registry.config import Field, MethodConfig, Problem, RecipeView


@OBJECTIVES.register
class Reward(Objective):
    """Pairwise reward modelling by the model of Bradley and Terry, on the score head.

        r    = S h
        loss = sum over pairs of -log sigmoid(r_c - r_r - m) + `center` (r_c + r_r)^2

    with h the hidden state of a text's last token after the final norm, S the score head of one label, c the chosen and
    r the rejected text of a pair, both with the prompt, m the pair's margin (the column `data.format.margin`, else 0).
    `center` draws the sum of both rewards to 0, which the first term leaves free. The loop divides by the pairs of the
    step. Held-out losses are of the first term alone.

    Shapes: h (2 pairs, d), S (1, d) without bias, in float32 whatever `model.dtype`. At step 0 S is drawn as the model
    draws its weights, so the loss is near log 2 a pair.
    Trains: what the adapter trains, and the d numbers of S. Records, over this process's `pairs`: reward_margin, the
    mean of r_c - r_r; reward_accuracy, the share of pairs with r_c > r_r; reward_chosen, the mean of r_c.
    Source: Bradley & Terry, Biometrika 1952; Ouyang et al., 2022, arXiv 2203.02155; margins: Touvron et al., "Llama 2",
    2023, arXiv 2307.09288; centring: Eisenstein et al., 2023, arXiv 2312.09244; as TRL's RewardTrainer computes it.
    Departures: no end-of-text token is put behind plain texts, so that a score is what a classifier gives the text.
    """

    aliases = {
        "reward_model reward_modeling rm bradley_terry": "objective: reward\nmodel: {head: [reward]}\n"
        "data: {format: preference}",
    }
    provides = {"backward"}
    requires = {"pairs", "score_head"}

    config: Config

    class Config(MethodConfig):
        center: float = Field(
            0.0, ge=0, description="weight of the squared sum of both rewards; the paper's is 0.01"
        )

        def clashes(self, recipe: RecipeView) -> Iterator[Problem]:
            """A reward is one number."""
            head = recipe["model.head"]
            labels = head.get("labels") if isinstance(head, dict) else head
            if isinstance(labels, list) and len(labels) != 1:
                message = f"has {len(labels)} labels, and a reward is one number; write model.head: [reward]"
                yield Problem("model.head", message)

    def __call__(self, model: LanguageModel, batch: Batch, run: Run | None = None) -> Tensor:
        assert batch.pairs and batch.labels is not None, "rows that are no pairs are refused with the recipe"
        scores = model.scores(batch)
        chosen, rejected = scores[0::2, 0], scores[1::2, 0]
        if run is not None:
            record_rewards(run, chosen.detach(), rejected.detach())
        loss = pair_losses(scores, batch.labels).sum()
        return (
            loss + self.config.center * torch.square(chosen + rejected).sum() if self.config.center else loss
        )

    def divisor(self, batches: StepTotals) -> int:
        return batches.examples
