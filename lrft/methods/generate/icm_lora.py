"""ICM-LoRA: a conditional variational autoencoder over flattened adapters."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lrft.core.adapter import Factors
from lrft.core.generate import Generator, Known, Sizes, Wants, choose, samples_of
from lrft.methods.generate._normal import Units, divergence, sampled
from lrft.registry.axes import GENERATORS
from lrft.registry.config import Any, Field, MethodConfig
from lrft.registry.errors import UsageError

KERNEL = 7


@GENERATORS.register
class ICMLoRA(Generator):
    """A convolutional autoencoder learns what adapters look like, given a vector of their task.

        x = (v - m) / d                                    v the adapter as one vector, m and d of every factor
        mu, log s^2 = heads([encoder(x), c]),  z = mu + s * noise
        loss = mean (decoder([z, c]) - x)^2 + `kl` * KL(N(mu, s^2) || N(0, I))
        a new task: z ~ N(0, I),  v = m + d * decoder([z, c])

    with c the last hidden state of the base at the last token, averaged over `rows` training rows of the task, KL the
    sum over the `latent` numbers of z, and m, d over all samples of the library.

    Shapes: x (L) is filled up with zeros to a multiple of 2^n, n the length of `channels`; the encoder is n
    convolutions of width 7 and stride 2 with batch norm and leaky ReLU, the decoder as many transposed ones with ELU.
    Trains: encoder, decoder and heads by Adam at `lr`, `batch_size` samples a step, `epochs` times the samples; the
    rate falls by a cosine to a half. Step 0 is torch's own random start, from the seed.
    Source: Shao et al., "In-Context Meta LoRA Generation", IJCAI 2025, arXiv 2501.17635, and the authors' code.
    Departures: the authors' scripts take m and d from an adapter of the very task that one is generated for, and c from
    the model fine-tuned for it; here both know of that task its rows alone. m and d are one for all samples, each was
    its own; the filling is no part of the loss; one fit holds all tasks, each with its c; the script names no
    optimizer.
    Advice: A and B of two runs compare number by number only where both began with the same factors, so the runs of a
    library share seed and init, and differ in their data.
    """

    config: Config

    class Config(MethodConfig):
        latent: int = Field(256, gt=0, le=65_536)
        channels: list[int] = Field(
            [8, 16, 32, 64, 128, 256, 256, 128, 64, 32, 16, 8], min_length=1, max_length=20
        )
        kl: float = Field(0.005, ge=0)
        rows: int = Field(30, gt=0)
        lr: float = Field(2e-4, gt=0, le=1)
        batch_size: int = Field(2, gt=1, description="samples a step; one alone has no batch norm")
        epochs: int = Field(2000, gt=0)

    def __init__(self, config: MethodConfig, sizes: Sizes) -> None:
        super().__init__(config, sizes)
        channels, latent = self.config.channels, self.config.latent
        (width,) = sizes.condition
        step = 2 ** len(channels)
        self.length = -(-sizes.layout.size // step) * step
        self.last = self.length // step
        self.units = Units(sizes.layout)
        self.encoder = nn.Sequential(*_encoder([1, *channels]))
        self.to_latent = nn.Linear(self.last * channels[-1], latent)
        self.to_mean = nn.Linear(latent + width, latent)
        self.to_log_variance = nn.Linear(latent + width, latent)
        self.to_decoder = nn.Linear(latent + width, self.last * channels[-1])
        self.decoder = nn.Sequential(*_decoder([*channels[::-1], channels[0]]))

    @classmethod
    def wants(cls, config: Any) -> Wants:
        return Wants("last_state", rows=config.rows)

    def prepare(self, known: Sequence[Known]) -> None:
        if len(samples_of(known)) < 2:
            raise UsageError(f"{self.name}: batch norm needs two adapters or more; here is one")
        self.units.take(known)

    def steps(self, known: Sequence[Known]) -> int:
        return int(self.config.epochs * self._steps_per_epoch(known))

    def optimizer(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), lr=self.config.lr)

    def rate(self, step: int, steps: int) -> float:
        epoch = step * self.config.epochs // steps
        return 0.5 * (1 + math.cos(math.pi * epoch / (2 * self.config.epochs)))

    def loss(self, known: Sequence[Known], draws: torch.Generator) -> Tensor:
        there = samples_of(known)
        chosen = [there[place] for place in choose(len(there), self.config.batch_size, draws)]
        x = self.units.normalise(torch.stack([known[task].samples[sample] for task, sample in chosen]))
        c = torch.stack([known[task].condition for task, _ in chosen])
        mean, log_variance = self.encode(x, c)
        found = self.decode(sampled(mean, log_variance, draws), c)
        nothing = torch.zeros_like(mean)
        kl = divergence(mean, log_variance, nothing, nothing).mean()
        return F.mse_loss(found, x) + self.config.kl * kl

    @torch.no_grad()
    def draw(self, condition: Tensor, draws: torch.Generator) -> dict[str, Factors]:
        z = torch.randn(1, self.config.latent, generator=draws).to(condition.device)
        return self.sizes.layout.factors(self.units.restore(self.decode(z, condition[None]))[0])

    def encode(self, x: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
        """(B, L), (B, d) -> mean and log variance of z, both (B, latent)."""
        filled = F.pad(x, (0, self.length - x.shape[1]))
        h = torch.cat([self.to_latent(self.encoder(filled[:, None]).flatten(1)), c], dim=1)
        return self.to_mean(h), self.to_log_variance(h)

    def decode(self, z: Tensor, c: Tensor) -> Tensor:
        """(B, latent), (B, d) -> (B, L), without the filling."""
        h = self.to_decoder(torch.cat([z, c], dim=1)).unflatten(1, (-1, self.last))
        found: Tensor = self.decoder(h)[:, 0, : self.sizes.layout.size]
        return found

    def _steps_per_epoch(self, known: Sequence[Known]) -> int:
        return -(-len(samples_of(known)) // self.config.batch_size)


def _encoder(channels: Sequence[int]) -> list[nn.Module]:
    found: list[nn.Module] = []
    for before, after in pairwise(channels):
        found += [
            nn.Conv1d(before, after, KERNEL, 2, KERNEL // 2),
            nn.BatchNorm1d(after),
            nn.LeakyReLU(),
        ]
    return found


def _decoder(channels: Sequence[int]) -> list[nn.Module]:
    """From the narrowest back, the last stage with a convolution to one channel behind it."""
    found: list[nn.Module] = []
    for before, after in pairwise(channels):
        found += [
            nn.ConvTranspose1d(before, after, KERNEL, 2, KERNEL // 2, output_padding=1),
            nn.BatchNorm1d(after),
            nn.ELU(),
        ]
    return [*found, nn.Conv1d(channels[-1], 1, KERNEL, 1, KERNEL // 2)]
