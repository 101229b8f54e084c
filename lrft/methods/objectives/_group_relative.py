"""What objectives share that compare the answers of a group: settings, the clipped ratio, what is recorded."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from lrft.core.batch import Batch, Sampled
from lrft.core.drawing import Drawing
from lrft.core.objective import StepTotals
from lrft.core.reward import Reward
from lrft.core.run import LanguageModel, Run
from lrft.methods.objectives._answers import token_logprobs
from lrft.methods.objectives._means import record_means
from lrft.methods.objectives._reference import base_alone
from lrft.registry.axes import REWARDS
from lrft.registry.config import Annotated, Choice, DrawingConfig, Field, Literal, RewardConfig
from lrft.registry.errors import DataError

TINY = 1e-6  # beside the deviation of a group


class GroupRelative(Drawing):
    """The loss of answers whose advantages are known: the clipped ratio, less the distance from the base.

    Children say what is judged of answers, and, where it is not a token each, what a ratio is of.
    """

    provides = {"backward", "draws"}
    requires = {"eager"}

    config: Config

    class Config(DrawingConfig):
        rewards: list[Annotated[RewardConfig, Choice(REWARDS)]] = Field(
            default=["exact_match"],
            validate_default=True,
            min_length=1,
            description="what an answer is given, added up by weight",
        )
        epsilon: float = Field(0.2, gt=0, lt=1, description="how far below 1 the ratio still has a gradient")
        epsilon_high: float | None = Field(
            None, gt=0, description="how far above 1; by default as far as below"
        )
        scale: Literal["group", "none"] = Field(
            "group", description="divide advantages by the deviation of their group, or not"
        )
        average: Literal["answer", "longest", "tokens"] = Field(
            "answer", description="what the loss of an answer's tokens is divided by"
        )

    def rewards(self) -> Sequence[Reward]:
        return [REWARDS.get(config.method)(config) for config in self.config.rewards]

    def __call__(self, model: LanguageModel, batch: Batch, run: Run | None = None) -> Tensor:
        """Summed loss over the answers of the batch.

        Raises:
            DataError: nobody drew them.
        """
        config, sampled = self.config, batch.sampled
        if sampled is None and run is not None:
            raise DataError(
                f"objective.method: {self.name} learns from answers that are drawn, and these are of rows"
            )
        reference = None
        if config.beta and sampled is not None:
            with torch.no_grad(), base_alone(model):
                reference = token_logprobs(model, batch, config.temperature)
        logprobs = token_logprobs(model, batch, config.temperature)
        if sampled is None:
            return -logprobs.sum()
        old = logprobs.detach() if sampled.logprobs is None else sampled.logprobs
        gain, clipped = self._clipped(*self._ratios(batch, sampled, logprobs - old))
        if reference is not None:
            apart = reference - logprobs
            divergence = apart.exp() - apart - 1
            gain = gain - config.beta * divergence
        if run is not None:
            _record(
                run,
                {"clipped": clipped.float(), **({} if reference is None else {"kl": divergence.detach()})},
            )
        return -(gain * self._weights(batch)).sum()

    def divisor(self, batches: StepTotals) -> int:
        return batches.targets if self.config.average == "tokens" else batches.examples * self.config.group

    def _ratios(self, batch: Batch, sampled: Sampled, moved: Tensor) -> tuple[Tensor, Tensor]:
        """The ratio and the advantage of every token, (N,), from how far its log-probability moved."""
        return moved.exp(), of_tokens(batch, sampled.advantages)

    def _clipped(self, ratio: Tensor, advantage: Tensor) -> tuple[Tensor, Tensor]:
        """What every token gains, (N,), and whether the clip holds it."""
        config = self.config
        high = config.epsilon if config.epsilon_high is None else config.epsilon_high
        free, held = ratio * advantage, ratio.clamp(1 - config.epsilon, 1 + high) * advantage
        return torch.minimum(free, held), (held < free).detach()

    def _weights(self, batch: Batch) -> Tensor:
        """Of every token, (N,)."""
        one = torch.ones(len(batch.targets), device=batch.targets.device)
        if self.config.average == "answer":
            return one / of_tokens(batch, batch.document_sums(one))
        return one / self.config.max_new_tokens if self.config.average == "longest" else one


def advantages(rewards: Tensor, scaled: bool) -> Tensor:
    """(rows, G) -> how much better each answer is than others to its prompt; 0 where all are worth the same."""
    apart = rewards - rewards.mean(1, keepdim=True)
    if scaled:
        apart = apart / (rewards.std(1, keepdim=True) + TINY)
    return torch.where(rewards.amax(1, keepdim=True) == rewards.amin(1, keepdim=True), 0.0, apart)


def of_tokens(batch: Batch, values: Tensor) -> Tensor:
    """A number of every document for each of its targets, (documents,) -> (N,)."""
    length = batch.input_ids.shape[1]
    starts = torch.tensor([row * length + start for row, start, _ in batch.documents])
    place = torch.searchsorted(starts.to(batch.supervised.device), batch.supervised, right=True) - 1
    return values.to(batch.supervised.device)[place]


def _record(run: Run, found: dict[str, Tensor]) -> None:
    """Means over the tokens of the step so far."""
    count = len(next(iter(found.values())))
    record_means(run, "drawn_tokens", count, {name: values.sum() for name, values in found.items()})
