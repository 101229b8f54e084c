"""Drag-and-Drop: prompts in, the tokens of an adapter out, by hyper-convolutions alone."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from lrft.core.adapter import Factors
from lrft.core.generate import Generator, Known, Sizes, Wants, choose, samples_of
from lrft.methods.generate._chunks import Chunks
from lrft.methods.generate._hyperconv import HyperDecoder, between
from lrft.registry.axes import GENERATORS
from lrft.registry.config import Any, Field, MethodConfig
from lrft.registry.errors import UsageError


@GENERATORS.register
class DragAndDrop(Generator):
    """Read some prompts of a task, and map their token states to an adapter, cut into tokens, in one pass.

        Y = decoder(S + `noise` * e)                    S the states of `prompts` prompts, drawn from those of the task
        loss = mean over the entries there are of w_i (Y_ijk - T_ijk - 0.1 `noise` * e')^2
        w_i = deviation of token i over the checkpoints of a task / that of all tokens, averaged over tasks
        a new task: v = detokenise(decoder(S))

    with T the tokens of one checkpoint of the task, any pairing of prompts and checkpoints. A token is a piece of A, or
    of the transposed B, of `chunk` columns, normalised by its own mean and deviation, which stand in its last rows and
    columns: so they are generated too, and nothing is taken from an adapter of the new task.

    Shapes: S (`prompts`, `tokens`, d); Y (pieces, r + 2, `chunk` + 2). Between them `stages` stages, each with a layer
    norm, four convolutions over the planes of the volume and one along its first axis, all of width `kernel`; every
    side changes by one ratio a stage, or as `shapes` lists.
    Trains: the decoder by AdamW at `lr` with `weight_decay`, `max_steps` of `batch_size` pairs, gradients cut at norm
    `clip`; the rate falls by a cosine to 0. Step 0 is torch's own random start.
    Source: Liang et al., "Drag-and-Drop LLMs: Zero-Shot Prompt-to-Weights", NeurIPS 2025, arXiv 2506.16406, and the
    authors' code.
    Departures: token states are the frozen base's own and not those of all-MiniLM-L12-v2, the last `tokens` of a
    prompt, zeros where there are fewer; prompts are drawn from the first `pool` rows; shapes between are not the
    authors' table, which is of one model; a narrow last piece is filled up, where theirs has to divide; the moments of
    AdamW are float32 and not 8-bit; noise is added to a copy, where theirs stays in what it is added to.
    Advice: the defaults are of a model of 0.5 billion numbers, seven tasks and eight cards; a small library needs a
    small decoder, such as `prompts: 8`, `tokens: 16`, `stages: 2`, `kernel: 3`.
    """

    least = 2

    config: Config
    importance: Tensor

    class Config(MethodConfig):
        prompts: int = Field(128, gt=0)
        tokens: int = Field(384, gt=0)
        pool: int = Field(256, gt=0)
        chunk: int = Field(128, gt=0)
        stages: int = Field(8, gt=0, le=64)
        shapes: list[list[int]] | None = Field(
            None, description="length, height and width after every stage but the last, instead of `stages`"
        )
        kernel: int = Field(9, gt=0, le=63)
        noise: float = Field(1e-4, ge=0)
        lr: float = Field(3e-5, gt=0, le=1)
        weight_decay: float = Field(0.1, ge=0)
        clip: float = Field(1.0, gt=0)
        batch_size: int = Field(64, gt=0)
        max_steps: int = Field(4000, gt=0)

    def __init__(self, config: MethodConfig, sizes: Sizes) -> None:
        super().__init__(config, sizes)
        self.chunks = Chunks(sizes.layout, self.config.chunk)
        first = (self.config.prompts, self.config.tokens, sizes.condition[-1])
        last = (len(self.chunks), *self.chunks.shape)
        shapes = between(first, last, self.config.stages)
        if self.config.shapes is not None:
            if any(len(one) != 3 or min(one) < 1 for one in self.config.shapes):
                raise UsageError(f"{self.name}: shapes are lists of three sizes each, as [256, 50, 200]")
            shapes = [first, *((n, h, w) for n, h, w in self.config.shapes), last]
        self.decoder = HyperDecoder(shapes, self.config.kernel)
        self.register_buffer("importance", torch.ones(len(self.chunks)))

    @classmethod
    def wants(cls, config: Any) -> Wants:
        if config.pool < config.prompts:
            raise UsageError(
                f"{cls.name}: pool {config.pool} is less than prompts {config.prompts}; write as many"
            )
        return Wants("prompts", rows=config.pool, tokens=config.tokens)

    def prepare(self, known: Sequence[Known]) -> None:
        """The weight of every token, from how far the checkpoints of each task are apart."""
        found = []
        for one in known:
            spread = self.chunks.tokens(one.samples.double()).std(0, correction=0)
            if not spread.nansum() > 0:
                raise UsageError(
                    f"{self.name}: the checkpoints of {one.name} are all the same; save some on the way"
                )
            there = (~spread.isnan()).sum()
            found.append((spread / spread.nansum()).nanmean(dim=(1, 2)) * there)
        self.importance.copy_(torch.stack(found).mean(0))

    def steps(self, known: Sequence[Known]) -> int:
        return int(self.config.max_steps)

    def optimizer(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.parameters(), lr=self.config.lr, weight_decay=self.config.weight_decay)

    @property
    def most(self) -> float | None:
        return float(self.config.clip)

    def rate(self, step: int, steps: int) -> float:
        """One step of warm-up at the whole rate, as the authors have it, then the cosine."""
        return 1.0 if step < 1 or steps < 2 else 0.5 * (1 + math.cos(math.pi * (step - 1) / (steps - 1)))

    def loss(self, known: Sequence[Known], draws: torch.Generator) -> Tensor:
        there = samples_of(known)
        picks = torch.randint(len(there), (self.config.batch_size,), generator=draws).tolist()
        targets = torch.stack([known[there[k][0]].samples[there[k][1]] for k in picks])
        states = torch.stack([self._prompts(known[there[k][0]].condition, draws) for k in picks])
        return self.error(self._noisy(states, 1.0, draws), self._noisy(targets, 0.1, draws, tokens=True))

    def error(self, states: Tensor, targets: Tensor) -> Tensor:
        """Of the decoder beside tokens (B, pieces, height, width), where these are no NaN."""
        there = ~targets.isnan()
        difference = torch.where(there, self.decoder(states) - targets.nan_to_num(), 0.0)
        return (difference.square() * self.importance[:, None, None]).sum() / there.sum()

    @torch.no_grad()
    def draw(self, condition: Tensor, draws: torch.Generator) -> dict[str, Factors]:
        tokens = self.decoder(self._prompts(condition, draws)[None])[0]
        return self.sizes.layout.factors(self.chunks.vectors(tokens))

    def _prompts(self, condition: Tensor, draws: torch.Generator) -> Tensor:
        return condition[choose(len(condition), self.config.prompts, draws)]

    def _noisy(self, values: Tensor, share: float, draws: torch.Generator, tokens: bool = False) -> Tensor:
        values = self.chunks.tokens(values) if tokens else values
        noise = torch.randn(values.shape, generator=draws).to(values.device)
        return values + share * self.config.noise * noise
