"""SimPO: of two answers the preferred one is to be likelier per token, by a margin and without a reference."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F

from lrft.core.batch import Batch
from lrft.core.objective import Objective, StepTotals
from lrft.core.run import LanguageModel, Run
from lrft.methods.objectives._answers import answer_logprobs, check_pairs
from lrft.methods.objectives._rewards import record_rewards
from lrft.registry.axes import OBJECTIVES
from lrft.registry.config import Field, MethodConfig


@OBJECTIVES.register
class SimPO(Objective):
    """Simple preference optimization: the reward of an answer is its mean log-probability.

        r(y) = beta / |y| sum over t of log pi(y_t | x, y_<t)
        loss = sum over pairs of -log sigmoid(r(c) - r(r) - gamma)

    with c the chosen and r the rejected answer to a prompt x, |y| the answer's tokens, its stop token included, beta =
    `beta`, gamma = `gamma`. There is no reference: one forward and backward pass over the pairs, and no second one. The
    loop divides by the pairs of the step.

    Shapes: r one number an answer. At step 0 the loss is whatever the base model's likelihoods say, and not log 2.
    Trains: what the adapter trains, adds no parameter and keeps no state. Records, over this process's `pairs`:
    reward_margin, the mean of r(c) - r(r); reward_accuracy, the share of pairs with r(c) > r(r); reward_chosen.
    Source: Meng et al., "SimPO", NeurIPS 2024, arXiv 2405.14734, and the authors' code, whose defaults these are
    (gamma is there `gamma_beta_ratio` 0.25 times beta); the paper's models have beta 2 to 10.
    Departures: dropout is the recipe's, which the authors turn off. The code's smoothed, hinge and supervised terms,
    which the paper's equation lacks, are left out.
    """

    aliases = {
        "simple_preference_optimization": "objective: simpo\ndata: {format: preference}",
    }
    provides = {"backward"}
    requires = {"pairs"}

    config: Config

    class Config(MethodConfig):
        beta: float = Field(2.0, gt=0, description="scale of the mean log-probability")
        gamma: float = Field(0.5, ge=0, description="margin by which the chosen reward is to be higher")

    def __call__(self, model: LanguageModel, batch: Batch, run: Run | None = None) -> Tensor:
        """Summed loss over the pairs of the batch.

        Raises:
            DataError: the batch does not hold pairs.
        """
        check_pairs(batch, "simpo")
        reward = self.config.beta * answer_logprobs(model, batch, mean=True)  # (2 pairs,), chosen first
        chosen, rejected = reward[0::2], reward[1::2]
        if run is not None:
            record_rewards(run, chosen.detach(), rejected.detach())
        return -F.logsigmoid(chosen - rejected - self.config.gamma).sum()

    def divisor(self, batches: StepTotals) -> int:
        return batches.examples
