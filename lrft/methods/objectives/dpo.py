"""DPO: learn which of two answers is preferred, measured against the model before training."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from lrft.core.batch import Batch
from lrft.core.objective import Objective, StepTotals
from lrft.core.run import LanguageModel, Run
from lrft.methods.objectives._answers import answer_logprobs, check_pairs
from lrft.methods.objectives._reference import base_alone, check_reference
from lrft.methods.objectives._rewards import record_rewards
from lrft.registry.axes import OBJECTIVES
from lrft.registry.config import Field, Literal, MethodConfig, model_validator


@OBJECTIVES.register
class DPO(Objective):
    """Direct preference optimization, with the bare base model as its own reference.

        h = [log pi(c) - log ref(c)] - [log pi(r) - log ref(r)]
        loss = sum over pairs of -(1 - e) log sigmoid(beta h) - e log sigmoid(-beta h)      `loss: sigmoid`
        loss = sum over pairs of (h - 1 / (2 beta))^2                                       `loss: ipo`
        loss = sum over pairs of max(0, 1 - beta h)                                         `loss: hinge`

    with c the chosen and r the rejected answer to a prompt, beta = `beta`, e = `label_smoothing` (`loss: sigmoid`
    only). log pi is summed over the answer's tokens, its stop token included (`logprob: sum`), or their mean
    (`logprob: mean`). ref is this model with its adapters off, in evaluation mode and without gradient: one more
    forward pass over the same batch, and no second copy of any weight. The loop divides by the pairs of the step.

    Shapes: h one number a pair. At step 0 h = 0: with `loss: sigmoid` and e = 0 the loss is log 2 a pair and its
    gradient -beta / 2 (d log pi(c) - d log pi(r)). The same holds where no adapter is attached yet, as in calibration.
    Trains: what the adapter trains, adds no parameter and keeps no state. Records, over this process's `pairs`:
    reward_margin, the mean of beta h; reward_accuracy, the share of pairs with h > 0; reward_chosen, the mean of beta
    (log pi(c) - log ref(c)).
    Source: Rafailov et al., NeurIPS 2023, arXiv 2305.18290, and the authors' code (label smoothing too); IPO: Azar et
    al., 2023, arXiv 2310.12036; hinge: Zhao et al., "SLiC-HF", 2023, arXiv 2305.10425, in the form with a reference.
    Departures: the policy keeps the dropout of the recipe's adapter, which the authors turn off (write 0).
    Advice: IPO as its authors ran it, and as TRL has it by their word, is of means over tokens: `logprob: mean`.
    """

    aliases = {
        "dpo sigmoid direct_preference_optimization": "objective: dpo\ndata: {format: preference}",
        "cdpo": "objective: {method: dpo, label_smoothing: 0.1}\ndata: {format: preference}",
        "ipo": "objective: {method: dpo, loss: ipo, logprob: mean}\ndata: {format: preference}",
        "slic hinge": "objective: {method: dpo, loss: hinge}\ndata: {format: preference}",
    }
    provides = {"backward"}
    requires = {"adapters", "pairs", "fixed_base", "beside_base"}

    config: Config

    class Config(MethodConfig):
        loss: Literal["sigmoid", "ipo", "hinge"] = "sigmoid"
        beta: float = Field(0.1, gt=0, description="how strongly the policy is held to the reference")
        label_smoothing: float = Field(
            0.0, ge=0, lt=0.5, description="assumed share of pairs whose answers are swapped; sigmoid only"
        )
        logprob: Literal["sum", "mean"] = Field(
            "sum", description="log-probability of a whole answer, or per token"
        )

        @model_validator(mode="after")
        def _check_smoothing(self) -> DPO.Config:
            if self.label_smoothing and self.loss != "sigmoid":
                raise ValueError(f"label_smoothing belongs to loss: sigmoid; write 0 with loss: {self.loss}")
            return self

    def __call__(self, model: LanguageModel, batch: Batch, run: Run | None = None) -> Tensor:
        """Summed loss over the pairs of the batch.

        Raises:
            DataError: the batch does not hold pairs.
            RecipeError: weights of the base train, so the base is no reference.
        """
        check_pairs(batch, "dpo")
        check_reference(run, "dpo")
        mean = self.config.logprob == "mean"
        with torch.no_grad(), base_alone(model):
            reference = answer_logprobs(model, batch, mean)
        reward = self.config.beta * (
            answer_logprobs(model, batch, mean) - reference
        )  # (2 pairs,), chosen first
        chosen, rejected = reward[0::2], reward[1::2]
        if run is not None:
            record_rewards(run, chosen.detach(), rejected.detach())
        return self._loss(chosen - rejected).sum()

    def divisor(self, batches: StepTotals) -> int:
        return batches.examples

    def _loss(self, margin: Tensor) -> Tensor:
        """The loss of each pair, from beta h (pairs,)."""
        config = self.config
        if config.loss == "ipo":
            return (margin / config.beta - 1 / (2 * config.beta)) ** 2
        if config.loss == "hinge":
            return torch.relu(1 - margin)
        smoothing = config.label_smoothing
        return -(1 - smoothing) * F.logsigmoid(margin) - smoothing * F.logsigmoid(-margin)
