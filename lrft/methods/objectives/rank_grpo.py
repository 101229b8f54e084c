"""Rank-GRPO: each item of a list that the model draws is compared with those of others at the same rank."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from lrft.core.batch import Batch, Sampled
from lrft.core.drawing import Lines
from lrft.core.reward import Reward
from lrft.core.run import LanguageModel
from lrft.methods.objectives._answers import token_logprobs
from lrft.methods.objectives._group_relative import GroupRelative, advantages
from lrft.registry.axes import OBJECTIVES, REWARDS
from lrft.registry.config import Annotated, Choice, Field, Literal, RewardConfig
from lrft.registry.errors import RecipeError


@OBJECTIVES.register
class RankGRPO(GroupRelative):
    """GRPO on answers that are lists, an item a line: items are rewarded, compared and clipped, each at its rank.

        A_ik  = (R_ik - mean of R_k) / (deviation of R_k + 1e-6),  over the answers to one prompt
        rho_t = exp of the mean of log p_u - log old_u over the tokens u of the item that t is in
        loss  = -sum over answers i of w_i sum over its tokens t of
                min(rho_t A_t, clip(rho_t, 1 - `epsilon`, 1 + `epsilon_high`) A_t) - beta (exp(apart) - apart - 1)

    with R_ik what `rewards` give to item k of answer i, 0 where it has none; A_t = A_ik for the tokens of item k, whose
    line break is its last; p, old, apart, beta, w_i and the rest as in `grpo`. Lines after the first `ranks` are one
    more item, with A = 0, as has what ends an answer. To A is added, with `length_reward` l: l where an answer ends on
    line `ranks`, -l where it ends before, and -l for every token on a later line.

    Shapes: R (rows, group, ranks); A, rho one a token. Answers are drawn, judged and kept as in `grpo`. At step 0 rho
    is 1 and apart is 0. A list is read from all of an answer's text, thoughts included.
    Trains: what the adapter trains, adds no parameter and keeps no state. Records what `grpo` does; R of an answer is
    there the sum over its ranks, and a group is alike where it is at every rank.
    Source: Zhu et al., "Rank-GRPO", 2025, arXiv 2510.20150, and the authors' code, from which the formulas are, as are
    epsilons, beta, `ranks` and `length_reward`.
    Departures: 1e-6 for their 1e-4; the reference is the bare base; a line break is found in what a token is by itself.
    """

    aliases = {
        "list_recommendation rank_level": "objective: {method: rank_grpo, rewards: [listed], ranks: 20}",
    }

    config: Config

    class Config(GroupRelative.Config):
        rewards: list[Annotated[RewardConfig, Choice(REWARDS)]] = Field(
            default=["listed"],
            validate_default=True,
            min_length=1,
            description="what each item of an answer is given, added up by weight",
        )
        ranks: int = Field(20, gt=0, description="items that an answer is to have, a line each")
        length_reward: float = Field(
            0.1,
            ge=0,
            description="what ending on the last rank is worth; ending before it, or going on, costs it",
        )
        beta: float = Field(
            0.001,
            ge=0,
            description="how strongly the model is held to the base without its adapters; 0 for not at all",
        )
        epsilon: float = Field(0.06, gt=0, lt=1, description="how far below 1 the ratio still has a gradient")
        epsilon_high: float | None = Field(
            0.08, gt=0, description="how far above 1; null for as far as below"
        )
        average: Literal["answer", "longest", "tokens"] = Field(
            "tokens", description="what the loss of an answer's tokens is divided by"
        )

    @property
    def ranks(self) -> int:
        return self.config.ranks

    def rewards(self) -> Sequence[Reward]:
        """Those of the recipe.

        Raises:
            RecipeError: one of them is of a whole answer.
        """
        found = super().rewards()
        for reward in found:
            if "ranks" not in reward.provides:
                message = f"{reward.name} is of a whole answer, and rank_grpo rewards each item; choose listed, or grpo"
                raise RecipeError(message, "objective.rewards")
        return found

    @torch.no_grad()
    def judge(
        self, model: LanguageModel, batch: Batch, rewards: Tensor, lines: Lines | None = None
    ) -> Sampled:
        assert lines is not None, "answers that are rewarded by rank have lines"
        logprobs = token_logprobs(model, batch, self.config.temperature) if self.config.updates > 1 else None
        rows, group, ranks = rewards.shape
        found = advantages(rewards.transpose(1, 2).reshape(-1, group), self.config.scale == "group")
        of_items = found.view(rows, ranks, group).transpose(1, 2).reshape(-1, ranks)
        document = _documents(batch)
        rank = lines.of_targets.clamp(max=ranks)
        gain = torch.nn.functional.pad(of_items, (0, 1))[document, rank]
        gain = torch.where(lines.stops, 0, gain) + self._length_rewards(rank, lines.stops)
        device = batch.targets.device
        parts = document * (ranks + 1) + rank
        return Sampled(gain.float().to(device), logprobs, parts.to(device))

    def _length_rewards(self, rank: Tensor, stops: Tensor) -> Tensor:
        """Of every target, (N,), for where an answer ends."""
        last = self.config.ranks - 1
        worth = (stops & (rank == last)).double() - (stops & (rank < last)).double() - (rank > last).double()
        return self.config.length_reward * worth

    def _ratios(self, batch: Batch, sampled: Sampled, moved: Tensor) -> tuple[Tensor, Tensor]:
        if sampled.parts is None:
            return super()._ratios(batch, sampled, moved)
        # A masked sum and not an index_add, whose order of additions a GPU does not keep.
        inside = sampled.parts == sampled.parts.unique()[:, None]
        means = torch.where(inside, moved, 0).sum(1) / inside.sum(1)
        place = inside.int().argmax(0)
        return means[place].exp(), sampled.advantages


def _documents(batch: Batch) -> Tensor:
    """The document that every target is of, (N,) int64 on the host."""
    counts = batch.document_sums(torch.ones(len(batch.targets), device=batch.targets.device)).long().cpu()
    return torch.arange(len(counts)).repeat_interleave(counts)
