"""An actor and a critic in one network, and their update by clipped policy gradients (PPO)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.distributions import Normal
from torch.nn import functional as F

HIDDEN = 256
TRADE_OFF = 0.95  # lambda of the generalized advantage
CLIP, ENTROPY, VALUE, MOST_NORM = 0.2, 0.01, 0.5, 1.0
EPOCHS, BATCH = 4, 64


@dataclass
class Transition:
    """One step of an episode: `action` (width,) drawn in `state`, how likely it was, and what came of it."""

    state: Tensor
    action: Tensor
    logprob: Tensor
    value: Tensor
    reward: float = 0.0


class ActorCritic(nn.Module):
    """(n, states) -> a normal distribution of actions (n, width), and the values (n,) of the states."""

    def __init__(self, states: int, width: int) -> None:
        super().__init__()
        self.encoder = nn.Sequential(
            nn.Linear(states, HIDDEN), nn.LayerNorm(HIDDEN), nn.Mish(), nn.Linear(HIDDEN, HIDDEN), nn.Mish()
        )
        self.mean = nn.Linear(HIDDEN, width)
        self.value = nn.Linear(HIDDEN, 1)
        self.log_std = nn.Parameter(torch.full((width,), -0.5))

    def forward(self, states: Tensor) -> tuple[Normal, Tensor]:
        features = self.encoder(states)
        mean = self.mean(features)
        std = self.log_std.clamp(-5, 1).exp().expand_as(mean)
        return Normal(mean, std, validate_args=False), self.value(features).squeeze(-1)

    @torch.no_grad()
    def act(self, state: Tensor, generator: torch.Generator) -> Transition:
        """An action drawn in `state` (states,), without its reward."""
        drawn, value = self(state[None])
        action = drawn.mean + drawn.stddev * torch.randn(drawn.mean.shape, generator=generator)
        return Transition(state, action[0], drawn.log_prob(action).sum(), value[0])


def advantages(rewards: Tensor, values: Tensor, gamma: float) -> Tensor:
    """(n,): the generalized advantage of every step of an episode that ends with the last."""
    found, after, value_after = torch.zeros_like(rewards), torch.zeros(()), torch.zeros(())
    for step in reversed(range(len(rewards))):
        error = rewards[step] + gamma * value_after - values[step]
        after = error + gamma * TRADE_OFF * after
        found[step], value_after = after, values[step]
    return found


def improve(
    policy: ActorCritic,
    optimizer: torch.optim.Optimizer,
    episode: Sequence[Transition],
    gamma: float,
    generator: torch.Generator,
) -> None:
    """Update the policy by a finished episode: `EPOCHS` passes over it in batches."""
    states, actions = (torch.stack([getattr(t, name) for t in episode]) for name in ("state", "action"))
    before, values = (torch.stack([getattr(t, name) for t in episode]) for name in ("logprob", "value"))
    gained = advantages(torch.tensor([t.reward for t in episode]), values, gamma)
    returns = gained + values
    gained = (gained - gained.mean()) / (gained.std(correction=0) + 1e-6)
    for _ in range(EPOCHS):
        for batch in torch.randperm(len(episode), generator=generator).split(BATCH):
            drawn, value = policy(states[batch])
            ratio = (drawn.log_prob(actions[batch]).sum(-1) - before[batch]).exp()
            clipped = ratio.clamp(1 - CLIP, 1 + CLIP)
            surrogate = torch.minimum(ratio * gained[batch], clipped * gained[batch]).mean()
            loss = VALUE * F.mse_loss(value, returns[batch]) - surrogate
            update(policy, optimizer, loss - ENTROPY * drawn.entropy().sum(-1).mean())


def update(network: nn.Module, optimizer: torch.optim.Optimizer, loss: Tensor) -> None:
    """One step down the gradient of `loss`, whose norm is at most 1."""
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    nn.utils.clip_grad_norm_(network.parameters(), MOST_NORM)
    optimizer.step()
