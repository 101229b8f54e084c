"""GRPO: answers that the model draws are compared with others of its own to the same prompt."""

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
from lrft.methods.objectives._reference import base_alone
from lrft.registry.axes import OBJECTIVES, REWARDS
from lrft.registry.config import Annotated, Choice, DrawingConfig, Field, Literal, RewardConfig
from lrft.registry.errors import DataError

TINY = 1e-6  # beside the deviation of a group


@OBJECTIVES.register
class GRPO(Drawing):
    """Group relative policy optimization, on `group` answers to each prompt that the model draws itself.

        A_i  = (R_i - mean of R) / (deviation of R + 1e-6),  over the answers to one prompt
        rho  = p_t / old_t,  apart = log ref_t - log p_t
        loss = -sum over answers i of w_i sum over its tokens t of
               min(rho A_i, clip(rho, 1 - `epsilon`, 1 + `epsilon_high`) A_i) - beta (exp(apart) - apart - 1)

    with R_i the sum of `rewards`, each times its `weight`; p_t the probability of a token, old_t the one with which it
    was drawn, ref_t that of this model with its adapters off, in evaluation mode; beta = `beta`. The deviation is a
    sample's, over G - 1; `scale: none` does not divide by it. w_i is 1 over the tokens of the answer (`average:
    answer`), or over `max_new_tokens` (`average: longest`), and the loop divides by the answers of the step; with
    `average: tokens` w_i is 1, and it divides by their tokens. What ended an answer is one of its tokens, and none
    comes after it. Logits are divided by `temperature` throughout. With `unlikeliness` u, R_i is first multiplied by
    1 - u k_i / G, k_i the answers to the prompt whose mean log old_t is lower: likely ones are worth less.

    Shapes: A one number an answer; rho and apart one a token. Answers are drawn in batches of `eval.batch_tokens`, each
    a function of the weights, train.seed and its place in the run; new ones every `updates` steps, between which a
    checkpoint holds them. In the first of these steps rho is 1; old_t is computed, in a forward pass, only for others
    and for `unlikeliness`. ref_t is one more, with beta above 0. At step 0 apart is 0. In calibration, where nothing is
    drawn, the loss is the sum of -log p over the rows' own answers.
    Trains: what the adapter trains, adds no parameter and keeps no state. Records, over the step: reward, the mean R,
    and each of several as reward/NAME; reward_spread, the mean deviation in a group; rewards_alike, the share of groups
    that have none, and teach nothing; answer_tokens; answers_stopped, the share that ended before the limit. Over this
    process's tokens: kl, the mean of exp(apart) - apart - 1, and clipped, the share that the clip holds, which get no
    gradient.
    Source: Shao et al., "DeepSeekMath", 2024, arXiv 2402.03300, equations 3 and 4; beta and one update are theirs.
    `epsilon_high` and `average: tokens`: Yu et al., "DAPO", 2025, arXiv 2503.14476. `scale: none` and `average:
    longest`: Liu et al., "Understanding R1-Zero-Like Training", 2025, arXiv 2503.20783. Unlikeliness: He et al.,
    "Rewarding the Unlikely", EMNLP 2025, arXiv 2506.02355, and the authors' code, whose u is 0.25.
    Departures: settled here: `epsilon` as in PPO, 1e-6, and G - 1, of which the paper says nothing; k_i by mean and not
    by summed log-probability, as in the authors' code, and the same of answers that are equally likely. With dropout
    old_t is p_t of the same draw, and answers are drawn without. The reference is the bare base, never a later model.
    Advice: unlikeliness is meant for rewards that are never negative.
    """

    aliases = {
        "group_relative_policy_optimization rlvr": "objective: {method: grpo, rewards: [exact_match]}",
        "dr_grpo": "objective: {method: grpo, rewards: [exact_match], scale: none, average: longest, beta: 0.0}",
        "dapo": "objective: {method: grpo, rewards: [exact_match, length], epsilon_high: 0.28, average: tokens}",
    }
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
        unlikeliness: float = Field(
            0.0, ge=0, le=1, description="by how much less the likeliest answer of a group is worth"
        )

    def rewards(self) -> Sequence[Reward]:
        return [REWARDS.get(config.method)(config) for config in self.config.rewards]

    @torch.no_grad()
    def judge(self, model: LanguageModel, batch: Batch, rewards: Tensor) -> Sampled:
        logprobs = None
        if self.config.updates > 1 or self.config.unlikeliness:
            logprobs = token_logprobs(model, batch, self.config.temperature)
            mean = batch.document_sums(logprobs) / batch.document_sums(torch.ones_like(logprobs))
            likely = mean.double().cpu().view(rewards.shape)
            rewards = unlikely_worth_more(rewards, likely, self.config.unlikeliness)
        found = advantages(rewards, self.config.scale == "group").flatten().float()
        return Sampled(found, logprobs if self.config.updates > 1 else None)

    def __call__(self, model: LanguageModel, batch: Batch, run: Run | None = None) -> Tensor:
        """Summed loss over the answers of the batch.

        Raises:
            DataError: nobody drew them.
        """
        config, sampled = self.config, batch.sampled
        if sampled is None and run is not None:
            raise DataError(
                "objective.method: grpo learns from answers that are drawn, and these are of rows"
            )
        reference = None
        if config.beta and sampled is not None:
            with torch.no_grad(), base_alone(model):
                reference = token_logprobs(model, batch, config.temperature)
        logprobs = token_logprobs(model, batch, config.temperature)
        if sampled is None:
            return -logprobs.sum()
        old = logprobs.detach() if sampled.logprobs is None else sampled.logprobs
        advantage = _of_tokens(batch, sampled.advantages)
        gain, clipped = self._clipped((logprobs - old).exp(), advantage)
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
            return one / _of_tokens(batch, batch.document_sums(one))
        return one / self.config.max_new_tokens if self.config.average == "longest" else one


def advantages(rewards: Tensor, scaled: bool) -> Tensor:
    """(rows, G) -> how much better each answer is than others to its prompt; 0 where all are worth the same."""
    apart = rewards - rewards.mean(1, keepdim=True)
    if scaled:
        apart = apart / (rewards.std(1, keepdim=True) + TINY)
    return torch.where(rewards.amax(1, keepdim=True) == rewards.amin(1, keepdim=True), 0.0, apart)


def unlikely_worth_more(rewards: Tensor, likely: Tensor, by: float) -> Tensor:
    """(rows, G) rewards, the likeliest answer's less by `by` (G - 1) / G, the unlikeliest one's as they are."""
    rank = (likely[:, None, :] < likely[:, :, None]).sum(2)
    return rewards * (1 - by * rank / rewards.shape[1])


def _of_tokens(batch: Batch, values: Tensor) -> Tensor:
    """A number of every document for each of its targets, (documents,) -> (N,)."""
    length = batch.input_ids.shape[1]
    starts = torch.tensor([row * length + start for row, start, _ in batch.documents])
    place = torch.searchsorted(starts.to(batch.supervised.device), batch.supervised, right=True) - 1
    return values.to(batch.supervised.device)[place]


def _record(run: Run, found: dict[str, Tensor]) -> None:
    """Means over the tokens of the step so far, as tensors on the device: nothing here waits for it."""
    count = len(next(iter(found.values())))
    tokens = run.metrics.get("drawn_tokens", 0) + count
    for name, values in found.items():
        mean = run.metrics.get(name, 0.0)
        run.record(**{name: mean + (values.sum() - count * mean) / tokens})
    run.record(drawn_tokens=tokens)
