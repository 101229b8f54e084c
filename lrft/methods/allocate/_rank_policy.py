"""A policy of ranks: an actor gives coarse numbers, and a diffusion makes a vector of them, a number for every site."""

from __future__ import annotations

from collections import deque
from dataclasses import asdict, dataclass
from typing import Any, Protocol, TypedDict

import torch
from torch import Tensor

from lrft.methods.allocate._actor_critic import ActorCritic, Transition, improve, update
from lrft.methods.allocate._diffusion import Denoiser, denoising_loss, sample

REPLAYED, REPLAY_BATCH, UPDATES = 10_000, 64, 4  # vectors kept, and what of them is learnt after an episode


class Settings(Protocol):
    """What is asked of the method's settings."""

    @property
    def episode(self) -> int: ...

    @property
    def gamma(self) -> float: ...

    @property
    def policy_lr(self) -> float: ...

    @property
    def diffusion_lr(self) -> float: ...

    @property
    def coarse(self) -> int: ...

    @property
    def denoising(self) -> int: ...

    @property
    def warmup(self) -> int: ...


class PolicyState(TypedDict):
    """Networks and optimizers by name, what was tried before, and the episode that goes on."""

    parts: dict[str, dict[str, Any]]
    replay: list[Tensor]
    episode: list[dict[str, Any]]


@dataclass
class Drawn:
    """What the policy did in a state: the actor's part of it, the condition it gave, and a vector in [-1, 1]."""

    transition: Transition
    coarse: Tensor
    vector: Tensor


class RankPolicy:
    """Actor, critic and diffusion, and what they learn from.

    Attributes:
        episode: what was tried since the last update.
    """

    def __init__(self, settings: Settings, states: int, sites: int, seed: int) -> None:
        self.settings, self.sites = settings, sites
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.actor = ActorCritic(states, settings.coarse)
            self.denoiser = Denoiser(sites, settings.coarse)
        self.actor_steps = torch.optim.Adam(self.actor.parameters(), lr=settings.policy_lr)
        self.denoiser_steps = torch.optim.Adam(self.denoiser.parameters(), lr=settings.diffusion_lr)
        self.replay: deque[Tensor] = deque(
            maxlen=REPLAYED
        )  # condition, vector and reward, one after the other
        self.episode: list[Transition] = []

    def act(self, state: Tensor, generator: torch.Generator) -> Drawn:
        """Draw a vector (sites,) in `state` (states,)."""
        transition = self.actor.act(state, generator)
        coarse = torch.tanh(transition.action)
        steps = self.settings.denoising
        return Drawn(transition, coarse, sample(self.denoiser, coarse, self.sites, steps, generator))

    def reward(self, drawn: Drawn, used: Tensor, reward: float, generator: torch.Generator) -> None:
        """Take what came of `drawn`, and learn where an episode ends.

        Args:
            used: (sites,) in [-1, 1], the vector after it was rounded.
        """
        drawn.transition.reward = reward
        self.episode.append(drawn.transition)
        self.replay.append(torch.cat([drawn.coarse, used, torch.tensor([reward])]))
        if len(self.episode) < self.settings.episode:
            return
        with torch.enable_grad():
            improve(self.actor, self.actor_steps, self.episode, self.settings.gamma, generator)
            self._denoise(generator)
        self.episode = []

    def _denoise(self, generator: torch.Generator) -> None:
        for _ in range(UPDATES if len(self.replay) >= self.settings.warmup else 0):
            chosen = torch.randperm(len(self.replay), generator=generator)[:REPLAY_BATCH].tolist()
            rows = torch.stack([self.replay[index] for index in chosen])
            coarse, vectors, rewards = rows.split([self.settings.coarse, self.sites, 1], dim=1)
            loss = denoising_loss(self.denoiser, vectors, coarse, rewards[:, 0], generator)
            update(self.denoiser, self.denoiser_steps, loss)

    def state_dict(self) -> PolicyState:
        """What `load_state_dict` takes."""
        parts = {name: part.state_dict() for name, part in self._parts.items()}
        replay = [torch.stack(list(self.replay))] if self.replay else []
        return {"parts": parts, "replay": replay, "episode": [asdict(t) for t in self.episode]}

    def load_state_dict(self, state: PolicyState) -> None:
        """Go on where that was taken."""
        for name, part in self._parts.items():
            part.load_state_dict(state["parts"][name])
        self.replay.extend(row.clone() for rows in state["replay"] for row in rows)
        self.episode = [Transition(**one) for one in state["episode"]]

    @property
    def _parts(self) -> dict[str, Any]:
        return {
            "actor": self.actor,
            "denoiser": self.denoiser,
            "actor_steps": self.actor_steps,
            "denoiser_steps": self.denoiser_steps,
        }
