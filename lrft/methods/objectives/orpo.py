"""ORPO: supervised fine-tuning on the preferred answer, and odds that favour it over the other one."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F

from lrft.core.batch import Batch
from lrft.core.objective import Objective, StepTotals
from lrft.core.run import LanguageModel, Run
from lrft.methods.objectives._answers import MOST, answer_logprobs, check_pairs, log_rest
from lrft.methods.objectives._rewards import record_rewards
from lrft.registry.axes import OBJECTIVES
from lrft.registry.config import Field, MethodConfig


@OBJECTIVES.register
class ORPO(Objective):
    """Odds ratio preference optimization: one loss for supervised fine-tuning and preferences, without a reference.

        l(y) = 1 / |y| sum over t of log pi(y_t | x, y_<t),  odds(y) = e^l(y) / (1 - e^l(y))
        loss = sum over pairs of -l(c) - `weight` log sigmoid(log odds(c) - log odds(r))

    with c the chosen and r the rejected answer to a prompt x, |y| the answer's tokens, its stop token included. One
    forward and backward pass over the pairs. The loop divides by the pairs of the step.

    Shapes: l one number an answer. At step 0 the loss is what the base model's likelihoods say; with `weight: 0` it is
    the supervised loss of the chosen answers, each pair weighing the same.
    Trains: what the adapter trains, adds no parameter and keeps no state. Records, over this process's `pairs`:
    reward_margin, the mean of `weight` (l(c) - l(r)); reward_accuracy, the share of pairs with l(c) > l(r);
    reward_chosen, the mean of `weight` l(c).
    Source: Hong et al., "ORPO", EMNLP 2024, arXiv 2403.07691, equations 1 and 4 to 7 (lambda is `weight`; 0.1 for
    Mistral 7B, 0.2 for Llama-2 7B, 0.25 for Phi-2), and the authors' code.
    Departures: the supervised term is the answer's alone and its mean a pair's, as the paper writes; the authors' code
    learns the prompt too unless `disable_prompt_loss`, over the tokens of the batch. l is held below -1e-6 in the odds,
    where float32 has none left: such an answer gets no gradient through them.
    """

    aliases = {
        "odds_ratio_preference_optimization": "objective: orpo\ndata: {format: preference}",
    }
    provides = {"backward"}
    requires = {"pairs"}

    config: Config

    class Config(MethodConfig):
        weight: float = Field(0.1, ge=0, description="of the odds ratio beside the supervised loss; lambda")

    def __call__(self, model: LanguageModel, batch: Batch, run: Run | None = None) -> Tensor:
        """Summed loss over the pairs of the batch.

        Raises:
            DataError: the batch does not hold pairs.
        """
        check_pairs(batch, "orpo")
        weight, means = self.config.weight, answer_logprobs(model, batch, mean=True)
        chosen, odds = means[0::2], log_odds(means)
        if run is not None:
            record_rewards(run, weight * chosen.detach(), weight * means[1::2].detach())
        return (-chosen - weight * F.logsigmoid(odds[0::2] - odds[1::2])).sum()

    def divisor(self, batches: StepTotals) -> int:
        return batches.examples


def log_odds(logprob: Tensor) -> Tensor:
    """Log of p / (1 - p) from log p, exact in float32 for p near 0 and near 1."""
    logprob = logprob.clamp(max=MOST)
    return logprob - log_rest(logprob)
