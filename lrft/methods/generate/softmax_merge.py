"""Softmax-weighted merge: the exact sum of the adapters whose tasks are described most alike."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from lrft.core.adapter import Factors
from lrft.core.combine import Part, together
from lrft.core.generate import Generator, Known, Sizes, Wants
from lrft.methods.generate._experts import Experts
from lrft.registry.axes import GENERATORS
from lrft.registry.config import Any, Field, MethodConfig


@GENERATORS.register
class SoftmaxMerge(Generator):
    """Weigh the adapters of known tasks by how near their descriptions are, and add their changes.

        a = softmax(cos(t, t_e) / `temperature`)    over the `top` tasks e of largest cosine
        delta = sum_e a_e B_e A_e

    with t the description of the new task as the base embeds it, and A_e, B_e the mean of the `last` checkpoints of
    task e. It is what `sg_lora` has to be better than, and the sum is exact, as `cat` of `lrft combine` makes it.

    Shapes: A (top * r, in), B (out, top * r).
    Trains: nothing; there is no step 0.
    Source: Li et al., "SG-LoRA: Semantic-guided LoRA Parameters Generation", 2025, arXiv 2509.10535, its baseline, by
    public descriptions; the authors' code was not to be had.
    Departures: embeddings are means of the frozen base's own last hidden states and not of CLIP's text encoder; of how
    the adapters of an expert become one before the merge nothing was found, so it is the mean of its factors.
    The temperature is not known; 0.1 is lrft's.
    """

    config: Config

    class Config(MethodConfig):
        top: int = Field(4, gt=0)
        temperature: float = Field(0.1, gt=0)
        last: int = Field(100, gt=0)

    def __init__(self, config: MethodConfig, sizes: Sizes) -> None:
        super().__init__(config, sizes)
        self.experts = Experts(sizes, self.config.last, self.config.top, self.config.temperature)

    @classmethod
    def wants(cls, config: Any) -> Wants:
        return Wants("text")

    def prepare(self, known: Sequence[Known]) -> None:
        self.experts.take(known)

    @torch.no_grad()
    def draw(self, condition: Tensor, draws: torch.Generator) -> dict[str, Factors]:
        return self.merged(condition)

    def merged(self, condition: Tensor) -> dict[str, Factors]:
        """The same, of which nothing is drawn."""
        weights = self.experts.weights(condition)
        chosen = weights.nonzero()[:, 0].tolist()
        each = [self.sizes.layout.factors(self.experts.mean[place]) for place in chosen]
        return {
            site: together([Part(*one[site]) for one in each], weights[chosen].tolist()) for site in each[0]
        }
