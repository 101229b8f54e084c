"""SG-LoRA: a conditional variational autoencoder whose condition is a mixture of the nearest experts."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn

from lrft.core.adapter import Factors
from lrft.core.generate import Known, Sizes, choose
from lrft.methods.generate._normal import Units, divergence, sampled
from lrft.methods.generate.softmax_merge import SoftmaxMerge
from lrft.registry.axes import GENERATORS
from lrft.registry.config import Field, MethodConfig


@GENERATORS.register
class SGLoRA(SoftmaxMerge):
    """Describe the new task, mix the statistics of the experts nearest to it, and decode an adapter from them.

        a = softmax(cos(t, t_e) / `temperature`)                over the `top` tasks e of largest cosine
        m = sum_e a_e m_e
        v = sum_e a_e v_e + sum_e a_e (m_e - m)^2               entry by entry, the law of total variance
        loss = |decoder(z, m, v) - x|^2 + `kl` * KL(q(z | x, m, v) || p(z | m, v)),  z ~ q
        a new task: z ~ p(z | m, v),  x = decoder(z, m, v)

    with m_e, v_e mean and variance of the `last` checkpoints of task e, t_e its description as the base embeds it, x an
    adapter as one vector. Both Gaussians are learnt; of the new task its description alone is known.

    Shapes: x, m, v (L) in units of the library, one mean and deviation for each factor; q (3 L -> `width` ->
    2 `latent`), p (2 L -> `width` -> 2 `latent`), the decoder (`latent` + 2 L -> `width` -> `width` -> L), with ReLU.
    Trains: the three by Adam at `lr`, for `max_steps` of `batch_size` samples. Step 0 is torch's own random start.
    Source: Li et al., "SG-LoRA: Semantic-guided LoRA Parameters Generation", 2025, arXiv 2509.10535, by public
    descriptions; the authors' code was not to be had.
    Departures: embeddings are means of the frozen base's own last hidden states and not of CLIP's text encoder, over a
    language model and not the image side of CLIP. Not known, and lrft's: `temperature`, `latent`, `width`, `lr`,
    `batch_size`, `max_steps`, the units; that a task which is learnt is among its own experts; biased variances.
    Advice: look at `softmax_merge` beside it, which `--judge` scores too; sampling pays where it is better than that.
    """

    config: Config

    class Config(SoftmaxMerge.Config):
        kl: float = Field(1.0, ge=0)
        latent: int = Field(64, gt=0, le=65_536)
        width: int = Field(256, gt=0, le=65_536)
        lr: float = Field(1e-3, gt=0, le=1)
        batch_size: int = Field(16, gt=0)
        max_steps: int = Field(2000, gt=0)

    def __init__(self, config: MethodConfig, sizes: Sizes) -> None:
        super().__init__(config, sizes)
        size, width, latent = sizes.layout.size, self.config.width, self.config.latent
        self.units = Units(sizes.layout)
        self.posterior = _network(3 * size, width, 2 * latent)
        self.prior = _network(2 * size, width, 2 * latent)
        self.decoder = _network(latent + 2 * size, width, width, size)

    def prepare(self, known: Sequence[Known]) -> None:
        super().prepare(known)
        self.units.take(known)

    def steps(self, known: Sequence[Known]) -> int:
        return int(self.config.max_steps)

    def optimizer(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), lr=self.config.lr)

    def loss(self, known: Sequence[Known], draws: torch.Generator) -> Tensor:
        there = [
            (task, row)
            for task, one in enumerate(known)
            for row in range(len(one.samples))[-self.config.last :]
        ]
        chosen = [there[place] for place in choose(len(there), self.config.batch_size, draws)]
        x = self.units.normalise(torch.stack([known[task].samples[row] for task, row in chosen]))
        conditions = {task: self.condition(known[task].condition) for task in {task for task, _ in chosen}}
        c = torch.stack([conditions[task] for task, _ in chosen])
        q, p = self.posterior(torch.cat([x, c], 1)).chunk(2, 1), self.prior(c).chunk(2, 1)
        found = self.decoder(torch.cat([sampled(q[0], q[1], draws), c], 1))
        error: Tensor = (found - x).square().sum(1)
        return (error + self.config.kl * divergence(q[0], q[1], p[0], p[1])).mean()

    @torch.no_grad()
    def draw(self, condition: Tensor, draws: torch.Generator) -> dict[str, Factors]:
        c = self.condition(condition)[None]
        mean, log_variance = self.prior(c).chunk(2, 1)
        z = sampled(mean, log_variance, draws)
        return self.sizes.layout.factors(self.units.restore(self.decoder(torch.cat([z, c], 1)))[0])

    def beside(self, condition: Tensor) -> dict[str, dict[str, Factors]]:
        return {SoftmaxMerge.name: self.merged(condition)}

    def condition(self, text: Tensor) -> Tensor:
        """(d,) -> (2 L,): mean and variance of the nearest experts, in units of the library."""
        mean, variance = self.experts.together(text)
        return torch.cat([self.units.normalise(mean), self.units.scale(variance)])


def _network(*widths: int) -> nn.Sequential:
    layers: list[nn.Module] = []
    for before, after in pairwise(widths):
        layers += [nn.Linear(before, after), nn.ReLU()]
    return nn.Sequential(*layers[:-1])
