"""GRPO: answers that the model draws are compared with others of its own to the same prompt."""

from __future__ import annotations

import torch
from torch import Tensor

from lrft.core.batch import Batch, Sampled
from lrft.core.drawing import Lines
from lrft.core.run import LanguageModel
from lrft.methods.objectives._answers import token_logprobs
from lrft.methods.objectives._group_relative import GroupRelative, advantages
from lrft.registry.axes import OBJECTIVES
from lrft.registry.config import Field


@OBJECTIVES.register
class GRPO(GroupRelative):
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
    1 - u k_i / G, k_i the answers to the prompt whose mean log old_t is lower: likely ones are worth less. With
    `redraws` n, a prompt whose answers are all worth the same is replaced in the step by another row of the epoch, up
    to n times.

    Shapes: A one number an answer; rho and apart one a token. Answers are drawn in batches of `eval.batch_tokens`, each
    a function of the weights, train.seed and its place in the run; new ones every `updates` steps, between which a
    checkpoint holds them. In the first of these steps rho is 1; old_t is computed, in a forward pass, only for others
    and for `unlikeliness`. ref_t is one more, with beta above 0. At step 0 apart is 0. In calibration, where nothing is
    drawn, the loss is the sum of -log p over the rows' own answers.
    Trains: what the adapter trains, adds no parameter and keeps no state. Records, over the rows as they are laid:
    reward, the mean R, and each of several as reward/NAME; reward_spread, the mean deviation in a group; rewards_alike,
    the share of groups that have none, and teach nothing; answer_tokens; answers_stopped, the share that ended before
    the limit; with `redraws`, redrawn, replacements a row, and alike_left, the share that has none after them. Over
    this process's tokens: kl, the mean of exp(apart) - apart - 1, and clipped, the share that the clip holds, which get
    no gradient.
    Source: Shao et al., "DeepSeekMath", 2024, arXiv 2402.03300, equations 3 and 4; beta and one update are theirs.
    `epsilon_high`, `average: tokens` and `redraws`, its dynamic sampling: Yu et al., "DAPO", 2025, arXiv 2503.14476.
    `scale: none` and `average: longest`: Liu et al., "Understanding R1-Zero-Like Training", 2025, arXiv 2503.20783. The
    `unlikeliness` of He et al., "Rewarding the Unlikely", EMNLP 2025, arXiv 2506.02355, and the authors' code, is 0.25.
    Departures: settled here: `epsilon` as in PPO, 1e-6, and G - 1, of which the paper says nothing; k_i by mean and not
    by summed log-probability, as in the authors' code, and the same of answers that are equally likely. With dropout
    old_t is p_t of the same draw, and answers are drawn without. The reference is the bare base, never a later model.
    What replaces a prompt is any row of the epoch, by seed and place; DAPO takes the next ones, and drops what is over.
    Advice: unlikeliness is meant for rewards that are never negative.
    """

    aliases = {
        "group_relative_policy_optimization rlvr": "objective: {method: grpo, rewards: [exact_match]}",
        "dr_grpo": "objective: {method: grpo, rewards: [exact_match], scale: none, average: longest, beta: 0.0}",
        "dapo": (
            "objective: {method: grpo, rewards: [exact_match, length], epsilon_high: 0.28, average: tokens, redraws: 9}"
        ),
    }

    config: Config

    class Config(GroupRelative.Config):
        unlikeliness: float = Field(
            0.0, ge=0, le=1, description="by how much less the likeliest answer of a group is worth"
        )

    @torch.no_grad()
    def judge(
        self, model: LanguageModel, batch: Batch, rewards: Tensor, lines: Lines | None = None
    ) -> Sampled:
        logprobs = None
        if self.config.updates > 1 or self.config.unlikeliness:
            logprobs = token_logprobs(model, batch, self.config.temperature)
            mean = batch.document_sums(logprobs) / batch.document_sums(torch.ones_like(logprobs))
            likely = mean.double().cpu().view(rewards.shape)
            rewards = unlikely_worth_more(rewards, likely, self.config.unlikeliness)
        found = advantages(rewards, self.config.scale == "group").flatten().float()
        return Sampled(found, logprobs if self.config.updates > 1 else None)


def unlikely_worth_more(rewards: Tensor, likely: Tensor, by: float) -> Tensor:
    """(rows, G) rewards, the likeliest answer's less by `by` (G - 1) / G, the unlikeliest one's as they are."""
    rank = (likely[:, None, :] < likely[:, :, None]).sum(2)
    return rewards * (1 - by * rank / rewards.shape[1])
