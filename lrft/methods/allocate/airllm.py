"""AirLLM: ranks chosen anew for every step by a policy that sees a channel, and learns what fits through it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import TypedDict

import torch
from torch import Tensor

from lrft.core.run import Run
from lrft.core.stages import Evidence, Plan, SitePlan
from lrft.methods.allocate._dynamic import Dynamic, gated_adapters, regularize
from lrft.methods.allocate._environment import Channel, check_alike, check_room, describe_tokens
from lrft.methods.allocate._rank_policy import Drawn, PolicyState, RankPolicy
from lrft.registry.axes import ALLOCATORS
from lrft.registry.config import Annotated, Field, MethodConfig, Problem, RecipeView, Sequence
from lrft.registry.errors import RecipeError


class State(TypedDict):
    """What a resume needs."""

    ranks: dict[str, int]
    policy: PolicyState | None
    channel: list[float]
    tokens: list[float]


@dataclass
class Tried:
    """The vector of ranks that is on trial: as drawn, in [-1, 1] as decoded, and its cost."""

    drawn: Drawn
    used: Tensor
    cost: float


@ALLOCATORS.register
class AirLLM(Dynamic):
    """AirLLM: a policy chooses the ranks of every step for a channel that changes, and learns from loss and cost.

        cost   = sum_i r_i (in_i + out_i + 1) `bits` / (`latency` `bandwidth` log2(1 + 10^(snr / 10)))
        state  = [snr, bandwidth, entropy, unknown, r_i / R of every site i]
        a      ~ N(mean(state), std),   v = DDIM(noise | tanh(a)) in [-1, 1]^sites
        r_i    = `min_rank` + floor((v_i + 1) / 2 (R - `min_rank`))
        reward = -loss - `cost_weight` cost;  where cost > 1:  -(`penalty` + `cost_weight`) cost, and nothing is trained
        loss  += `orthogonality` * mean_i (||A_i A_i^T - I||_F^2 + ||B_i^T B_i - I||_F^2) over the shown components

    with R = the highest `adapter.rank`; a site shows its first r_i components, at most as many as it has. snr (dB) and
    bandwidth (Hz) are drawn for every vector of ranks from `snr_db` and `bandwidth`, and stand in the state as places
    in their ranges; entropy is that of the last step's tokens over the logarithm of how many kinds there are, unknown
    the share of `unknown_token`. A vector that costs more than the channel carries (cost > 1) earns its reward at once
    and another is drawn, until one fits: the step is trained with that. After `episode` vectors actor and critic learn
    by PPO (gamma = `gamma`), and then the diffusion from all vectors so far, once there are `warmup`; each episode
    begins at half of what every site can have. What is scored, saved and merged is what the last step showed.

    Shapes: A (R, in), B (out, R) of `adapter: svd_lora`, by default with `draw: orthonormal` and a capacity of
    min(R, in, out). E = 0, so nothing changes at step 0.
    Trains: what the adapter trains; hidden components have a gradient of 0 and are moved by momentum and decay alone.
    State: both networks (about 0.64 M numbers and 1,281 a site) with their moments, and up to 10,000 vectors.
    Source: "AirLLM: Diffusion Policy-based Adaptive LoRA for Remote Fine-Tuning of LLM over the Air", 2025, and the
    authors' code (ZJUNICE/AirLLM), whose defaults are these; their rank is 64, alpha 32, dropout 0.1.
    Departures: a vector that does not fit uses up no step and no rows. An episode's first entropy is that of the rows
    to come, where theirs are looked at and dropped. Special tokens count in the entropy. The channel is simulated, as
    in their code: nothing is sent.
    Advice: choose a rank of which half fits, as their configuration for 10 dB does (rank 8, `gamma: 0.95`). An
    untrained policy draws ranks around (`min_rank` + R) / 2, and learns slowly at these rates: of 3,000 vectors for 210
    sites and a channel that carries a mean rank of 12 of 64, none fitted. A vector takes 20 ms of a CPU there.
    """

    aliases = {"airllm": "adapter: {method: svd_lora, rank: 64, alpha: 32}\nallocate: airllm"}
    requires = {"elastic", "one_stage"}

    config: Config

    class Config(MethodConfig):
        min_rank: int = Field(1, gt=0, le=65_536, description="lowest rank of a site")
        snr_db: list[Annotated[float, Field(ge=-100, le=100)]] = Field(
            [-5.0, 0.0, 5.0, 10.0, 15.0],
            min_length=1,
            description="signal-to-noise ratios of the channel, in dB",
        )
        bandwidth: list[Annotated[float, Field(gt=0, le=1e15)]] = Field(
            [1e8], min_length=1, description="bandwidths of the channel, in Hz"
        )
        latency: float = Field(
            1.0, gt=0, le=1e6, description="seconds that a step's adapters may be sent for"
        )
        bits: int = Field(32, gt=0, le=64, description="bits that a number is sent with")
        cost_weight: float = Field(0.1, ge=0, description="weight of the cost in the reward")
        penalty: float = Field(
            10.0, ge=0, description="what stands for the loss, times the cost, where it is above 1"
        )
        orthogonality: float = Field(
            0.01, ge=0, description="weight of the penalty on factors that are not orthonormal"
        )
        unknown_token: int | None = Field(
            None, ge=0, description="id of the tokenizer's unknown token, if it has one"
        )
        episode: int = Field(15, ge=2, description="vectors of ranks between two updates of the policy")
        gamma: float = Field(0.99, ge=0, le=1, description="what a reward is worth one step earlier")
        policy_lr: float = Field(1e-4, gt=0, description="rate of actor and critic")
        diffusion_lr: float = Field(5e-5, gt=0, description="rate of the diffusion")
        coarse: int = Field(16, gt=0, le=4096, description="numbers that the actor gives to the diffusion")
        denoising: int = Field(50, gt=1, le=1000, description="steps from noise to ranks")
        warmup: int = Field(128, gt=0, le=10_000, description="vectors before the diffusion learns")
        tries: int = Field(
            1500, gt=0, description="vectors for one step, after which a run in which none fits ends"
        )

        def clashes(self, recipe: RecipeView) -> Iterator[Problem]:
            """Ranks below the lowest."""
            rank = recipe["adapter.rank"] if recipe["adapter"] is not None else None
            if isinstance(rank, int) and rank < self.min_rank:
                yield Problem("allocate.min_rank", "is more than adapter.rank; write a lower one")

        def check_length(self, total_steps: int, ranks: Sequence[int] = ()) -> None:
            """Refuse a run within which the policy may never learn."""
            if total_steps < self.episode:
                message = f"{self.episode} is more than the {total_steps} steps of the run; write {total_steps} or less"
                raise RecipeError(message, "allocate.episode")

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        self.channel = Channel(config.snr_db, config.bandwidth, config.latency, config.bits)
        self.tokens = [0.0, 0.0]
        self.tried: Tried | None = None
        self.highest = 0  # adapter.rank, which layers narrower than it do not have
        self.made: RankPolicy | None = None  # of as many sites as there are
        self.loaded: PolicyState | None = None

    @property
    def policy(self) -> RankPolicy:
        """What chooses the ranks; there from the start of a run on."""
        assert self.made is not None, "made at the start"
        return self.made

    def plan(self, plan: Plan, evidence: Evidence | None) -> Plan:
        """The plan with the published A and B, where the lowest ranks fit through the channel."""
        adapted = [entry for entry in plan.values() if entry.config]
        check_room(self.channel, adapted, self.config.min_rank)
        self.highest = max((entry.rank or 0 for entry in adapted), default=0)
        plan = super().plan(plan, evidence)
        return {name: as_published(entry) for name, entry in plan.items()}

    def start(self, run: Run) -> None:
        super().start(run)
        sites = len(self.adapters)
        self.made = self._new_policy(run, sites)
        if self.loaded is not None:
            self.policy.load_state_dict(self.loaded)
        self.loaded = None
        weight = self.config.orthogonality / sites
        regularize(self.adapters, partial(squared_orthogonality, weight=weight) if weight else None)

    def _new_policy(self, run: Run, sites: int) -> RankPolicy:
        return RankPolicy(self.config, 4 + sites, sites, run.seed)

    def before_step(self, run: Run) -> None:
        for refused in range(self.config.tries):
            if not self.policy.episode:
                self._begin(run)
            self.tried = self._try(run.generator)
            cost = self.tried.cost
            if cost <= 1:
                snr = self.channel.now[0]
                run.record(rank_total=sum(self.ranks.values()), cost=cost, snr_db=snr, refused=refused)
                return check_alike(run, self.ranks)
            self._reward(-(self.config.penalty + self.config.cost_weight) * cost, run.generator)
        message = (
            f"step {run.step + 1}: none of {self.config.tries} vectors of ranks fits through the channel (the last one "
            f"costs {cost:.3g} of 1); write a lower adapter.rank, or a higher bandwidth"
        )
        raise RecipeError(message, "allocate.tries")

    def after_step(self, run: Run) -> None:
        assert self.tried is not None
        self.tokens = describe_tokens(run, self.config.unknown_token)
        self._reward(-float(run.metrics["loss"]) - self.config.cost_weight * self.tried.cost, run.generator)
        if not self.policy.episode or run.at_an_end:
            kept = torch.cat([adapter.mask.bool() for adapter in self.adapters.values()])
            self.decided(run, kept, self.tried.drawn.vector)

    def _begin(self, run: Run) -> None:
        """The first state of an episode."""
        self._show([max(self.config.min_rank, adapter.capacity // 2) for adapter in self.adapters.values()])
        self.channel.draw(run.generator)
        self.tokens = describe_tokens(run, self.config.unknown_token)

    def _try(self, generator: torch.Generator) -> Tried:
        """Show the ranks that the policy chooses in the state as it is."""
        shares = [self.ranks[site] / adapter.capacity for site, adapter in self.adapters.items()]
        state = torch.tensor([*self.channel.places(), *self.tokens, *shares])
        drawn = self.policy.act(state, generator)
        span = max(self.highest, *self.capacities) - self.config.min_rank
        above = ((drawn.vector + 1) / 2 * span).floor().clamp(0, span)
        self._show([self.config.min_rank + int(number) for number in above])
        numbers = sum(
            self.ranks[site] * (adapter.site.in_features + adapter.site.out_features + 1)
            for site, adapter in self.adapters.items()
        )
        return Tried(drawn, 2 * above / max(span, 1) - 1, self.channel.cost(numbers))

    def _show(self, ranks: list[int]) -> None:
        """Show the first components of every site, as many as it has at most."""
        for (site, adapter), rank in zip(self.adapters.items(), ranks, strict=True):
            self.ranks[site] = min(rank, adapter.capacity)
            adapter.show(torch.arange(adapter.capacity) < self.ranks[site])

    def _reward(self, reward: float, generator: torch.Generator) -> None:
        assert self.tried is not None
        self.policy.reward(self.tried.drawn, self.tried.used, reward, generator)
        self.channel.draw(generator)

    def state_dict(self) -> State:
        policy = self.loaded if self.made is None else self.made.state_dict()
        return {"ranks": self.ranks, "policy": policy, "channel": self.channel.now, "tokens": self.tokens}

    def kept_later(self, run: Run) -> Mapping[str, object]:
        policy = self._new_policy(run, len(gated_adapters(run, self.name)))
        return {**super().kept_later(run), "policy": policy.state_dict()}

    def load_state_dict(self, state: State) -> None:
        self.ranks, self.loaded = dict(state["ranks"]), state["policy"]
        self.channel.now, self.tokens = list(state["channel"]), list(state["tokens"])


def as_published(entry: SitePlan) -> SitePlan:
    """The site's plan with orthonormal A and B and a rank that these can have, where the recipe names no other ones."""
    if entry.config is None or getattr(entry.config, "draw", "") is not None:
        return entry
    most = min(entry.site.in_features, entry.site.out_features)
    return entry.changed(draw="orthonormal", rank=min(entry.setting("rank"), most))


def squared_orthogonality(A: Tensor, B: Tensor, mask: Tensor, weight: float) -> Tensor:
    """Weight (||A A^T - I||_F^2 + ||B^T B - I||_F^2) over the shown components."""
    shown, identity = mask[:, None], torch.diag(mask)
    A, B = A * shown, B * shown.mT
    return weight * ((A @ A.mT - identity).square().sum() + (B.mT @ B - identity).square().sum())
