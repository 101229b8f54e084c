"""RIFF: the model learns to put inputs in other words with which the base model finds their answers likelier."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from lrft.core.batch import Batch, Sampled
from lrft.core.drawing import Drawing, Lines, Rewording
from lrft.core.objective import StepTotals
from lrft.core.reward import Reward
from lrft.core.run import LanguageModel, Run
from lrft.methods.objectives._answers import answer_logprobs, token_logprobs
from lrft.methods.objectives._means import record_means
from lrft.methods.objectives._reference import base_alone
from lrft.registry.axes import OBJECTIVES
from lrft.registry.config import DrawingConfig, Field, Problem, RecipeView, model_validator
from lrft.registry.errors import DataError

TINY = 1e-12  # beside the deviation of a group


@OBJECTIVES.register
class RIFF(Drawing):
    """Maximum marginal likelihood of `group` rephrasings of a row's input, which the model draws itself.

        R_i  = log ref(y | x_i),  z_i = (R_i - mean of R) / (deviation of R + 1e-12),  over the rephrasings of one input
        loss = - log sum over i of p(x_i | x) exp(z_i)
               + beta mean over i of (log p(x_i | x) - log ref(x_i | x) + 1)' log p(x_i | x)

    with x_i what the model answered to `ask`, in which {NAME} is column NAME of the row; log ref(y | x_i) the sum over
    the row's answer of this model's log-probabilities with its adapters off, where x_i is column `column` of the row; p
    the model, ref(x_i | x) it with its adapters off, both over the tokens of x_i, what ended it included; the bracket
    with a prime is held constant, and the second term then has the gradient of KL(p || ref) times beta = `beta`. An x_i
    that makes no row, such as an empty one, has R_i of a model for which all tokens are alike. z is 0 where all R are
    the same. The loop divides by the rows of the step.

    Shapes: R, z, log p one number a rephrasing. They are drawn as answers are in `grpo`, anew in every step; ref is a
    forward pass without adapters on each, and one on each row that it makes. At step 0 log p - log ref is 0. In
    calibration, where nothing is drawn, the loss is the sum of -log p over the rows' own answers.
    Trains: what the adapter trains, adds no parameter and keeps no state. Records, over the rows as they are laid: what
    `grpo` does of rewards, with R; over this process's rephrasings kl, the mean of log p - log ref, and rephrasings.
    Source: Najafi and Fyshe, "RIFF", Findings of ACL 2024, arXiv 2403.02271, and the authors' code: `mml_zscore` with
    `kl_on`, 8 rephrasings, beta 0.1.
    Departures: one decoder both rephrases, with adapters, and answers, without; the authors fine-tune a T5 trained on
    paraphrases against a RoBERTa. All are drawn at `temperature`, where half of theirs come from a beam. The authors
    subtract log ref(y | x) first, which z undoes. Policy gradients and sampling from the base are left out.
    Advice: begin with a model that rephrases. `lrft data augment --prompt ASK --into COLUMN --run` writes what the run
    has learnt, as rows to train on beside the others; the authors weigh both alike. Loss on held-out rows says nothing
    of it.
    """

    aliases = {
        "rephrase paraphrase maximum_marginal_likelihood": "objective: {method: riff, column: prompt}",
    }
    provides = {"backward", "draws", "rewords"}
    requires = {"eager"}

    config: Config

    class Config(DrawingConfig):
        column: str = Field("prompt", min_length=1, description="column of a row that is rephrased, a text")
        ask: str = Field(
            "Write this in other words and keep what it means:\n{prompt}",
            description="what the model is asked about a row; {NAME} is its column NAME, a literal brace is doubled",
        )
        beta: float = Field(
            0.1,
            ge=0,
            description="how strongly the model is held to the base without its adapters; 0 for not at all",
        )

        @model_validator(mode="after")
        def _check_ask(self) -> RIFF.Config:
            if "{" + self.column + "}" not in self.ask:
                raise ValueError(
                    f"ask does not hold {{{self.column}}}, so what is to be rephrased is not shown; write it there"
                )
            return self

        def clashes(self, recipe: RecipeView) -> Iterator[Problem]:
            """A second step on the same rephrasings, and a base that does not stay."""
            yield from super().clashes(recipe)
            if self.updates > 1:
                yield Problem("objective.updates", "riff learns from what the model draws now; write 1")
            adapter = recipe.declared("adapter")
            trains = recipe["trainable.weights"] != "adapter"
            if not self.beta and (trains or adapter is None or "own_weights" in adapter.provides):
                message = "weights of the base train, which is to find answers likely; train an adapter"
                yield Problem("objective.method", message)

    @property
    def rewords(self) -> Rewording:
        return Rewording(self.config.ask, self.config.column)

    def rewards(self) -> Sequence[Reward]:
        return []

    @torch.no_grad()
    def worth(self, model: LanguageModel, batch: Batch) -> Tensor:
        with base_alone(model):
            return answer_logprobs(model, batch)

    def judge(
        self, model: LanguageModel, batch: Batch, rewards: Tensor, lines: Lines | None = None
    ) -> Sampled:
        return Sampled(z_scores(rewards).flatten().float())

    def divisor(self, batches: StepTotals) -> int:
        return batches.examples

    def __call__(self, model: LanguageModel, batch: Batch, run: Run | None = None) -> Tensor:
        """Summed loss over the rows of the batch.

        Raises:
            DataError: nobody drew rephrasings.
        """
        sampled = batch.sampled
        if sampled is None and run is not None:
            raise DataError(
                "objective.method: riff learns from rephrasings that are drawn, and these are of rows"
            )
        reference = None
        if self.config.beta and sampled is not None:
            with torch.no_grad(), base_alone(model):
                reference = batch.document_sums(token_logprobs(model, batch, self.config.temperature))
        logprobs = batch.document_sums(token_logprobs(model, batch, self.config.temperature))
        if sampled is None:
            return -logprobs.sum()
        group = len(batch.documents) // len(batch.examples)
        of_rows = (logprobs + sampled.advantages.to(logprobs.device)).view(-1, group)
        loss = -of_rows.logsumexp(1).sum()
        if reference is not None:
            apart = (logprobs - reference).detach()
            loss = loss + self.config.beta * ((apart + 1) * logprobs).sum() / group
            if run is not None:
                record_means(run, "rephrasings", len(apart), {"kl": apart.sum()})
        return loss


def z_scores(rewards: Tensor) -> Tensor:
    """(rows, G) -> how far each is above the others, in deviations; 0 where all are the same."""
    z = (rewards - rewards.mean(1, keepdim=True)) / (rewards.std(1, keepdim=True) + TINY)
    return torch.where(rewards.amax(1, keepdim=True) == rewards.amin(1, keepdim=True), 0.0, z)
