"""KTO: learn from answers that are each judged by themselves, wanted or not."""

from __future__ import annotations

import torch
from torch import Tensor

from lrft.core.batch import Batch
from lrft.core.context import computing, share_done
from lrft.core.objective import Objective, StepTotals
from lrft.core.run import LanguageModel, Run
from lrft.methods.objectives._answers import answer_logprobs, check_judged
from lrft.methods.objectives._means import record_means
from lrft.methods.objectives._mismatched import mismatched
from lrft.methods.objectives._reference import base_alone, check_reference, undropped
from lrft.registry.axes import OBJECTIVES
from lrft.registry.config import Field, Iterator, MethodConfig, Problem, RecipeView


@OBJECTIVES.register
class KTO(Objective):
    """Kahneman-Tversky optimization, with the bare base model as its own reference.

        r    = log pi(y | x) - log ref(y | x),  the sum over the answer's tokens, its stop token included
        z    = max(0, mean over i of log pi(y_{i+1} | x_i) - log ref(y_{i+1} | x_i))
        loss = sum over wanted answers of `desirable` (1 - sigmoid(beta (r - z)))
             + sum over the others of `undesirable` (1 - sigmoid(beta (z - r)))

    with beta = `beta`. z estimates the KL divergence of the policy from the reference: each prompt x_i of the
    micro-batch with the answer of the next row, without gradient and dropout. ref is this model with its adapters off,
    in evaluation mode. That is three more forward passes without gradient (reference; policy and reference of the
    mismatched rows) and no second copy of any weight. The loop divides by the rows of the step.

    Shapes: r one number a row, z one a micro-batch. At step 0 r = z = 0, so the loss is half of the row's weight. In
    calibration, which is at step 0, z is 0 and not computed.
    Trains: what the adapter trains, adds no parameter and keeps no state. Records, over this process's rows of the
    step: reward_wanted and reward_unwanted, the means of beta r over either kind, where there are such; kl, the mean of
    z.
    Source: Ethayarajh et al., "KTO", ICML 2024, arXiv 2402.01306, equation 8, and the authors' code.
    Departures: z is of one micro-batch of one process, which the authors average over processes; a micro-batch of one
    row takes 0. The policy keeps the dropout of the recipe's adapter in r.
    Advice: `desirable` n_wanted / (`undesirable` n_unwanted) between 1 and 4/3, as the paper has it.
    """

    aliases = {
        "kahneman_tversky_optimization": "objective: kto\ndata: {format: unpaired}",
    }
    provides = {"backward"}
    requires = {"adapters", "judged", "fixed_base", "beside_base"}

    config: Config

    class Config(MethodConfig):
        beta: float = Field(0.1, gt=0, description="how strongly the policy is held to the reference")
        desirable: float = Field(1.0, gt=0, description="weight of answers that are wanted")
        undesirable: float = Field(1.0, gt=0, description="weight of answers that are not")

        def clashes(self, recipe: RecipeView) -> Iterator[Problem]:
            """A reference point needs answers of other rows."""
            if recipe["train.batch_size"] == 1 and recipe["train.packing"] is not True:
                message = (
                    "is 1, and kto compares with the answers of other rows of a micro-batch; write 2 or more, or "
                    "train.packing: true"
                )
                yield Problem("train.batch_size", message)
            if recipe["privacy"] is not None:
                message = (
                    "kto compares with the answers of other rows, and private rows are taken one by one; "
                )
                yield Problem("objective.method", f"{message}choose another")

    def __call__(self, model: LanguageModel, batch: Batch, run: Run | None = None) -> Tensor:
        """Summed loss over the rows of the batch.

        Raises:
            DataError: the batch does not say which answers are wanted.
            RecipeError: weights of the base train, so the base is no reference.
        """
        check_judged(batch, "kto")
        check_reference(run, "kto")
        with torch.no_grad():
            with base_alone(model):
                reference = answer_logprobs(model, batch)
            point = torch.zeros_like(reference[0]) if run is None else _divergence(model, batch)
        gain = answer_logprobs(model, batch) - reference
        if run is not None:
            _record(run, self.config.beta * gain.detach(), point, batch.wanted)
        sign = gain.new_tensor([1.0 if wanted else -1.0 for wanted in batch.wanted])
        weight = torch.where(sign > 0, self.config.desirable, self.config.undesirable)
        return (
            weight * torch.sigmoid(self.config.beta * sign * (point - gain))
        ).sum()  # 1 - sigmoid(a) = sigmoid(-a)

    def divisor(self, batches: StepTotals) -> int:
        return batches.examples


def _divergence(model: LanguageModel, batch: Batch) -> Tensor:
    """The reference point z of a micro-batch, a float32 scalar.

    A row alone takes as many passes as others: processes that hold parts of weights make equally many.
    """
    others = mismatched(batch)
    with computing(others, counts=False, done=share_done()):
        with undropped(model):
            policy = answer_logprobs(model, others)
        with base_alone(model):
            found = (policy - answer_logprobs(model, others)).mean().clamp(min=0)
    return found if len(batch.documents) > 1 else torch.zeros_like(found)


def _record(run: Run, rewards: Tensor, point: Tensor, wanted: tuple[bool, ...]) -> None:
    """Means over the step so far, each over what it is of."""
    found = {
        "reward_wanted": ("wanted", rewards, list(wanted)),
        "reward_unwanted": ("unwanted", rewards, [not one for one in wanted]),
        "kl": ("judged", point.expand(len(wanted)), [True] * len(wanted)),
    }
    for name, (counted, values, of) in found.items():
        if any(of):
            record_means(run, counted, sum(of), {name: (values * values.new_tensor(of)).sum()})
