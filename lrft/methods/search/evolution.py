"""Evolution: children of the best configurations so far."""

from __future__ import annotations

from collections.abc import Sequence
from random import Random

from lrft.core.search import Genes, Known, Search, best_first
from lrft.registry.axes import SEARCHES
from lrft.registry.config import Field, MethodConfig, model_validator


@SEARCHES.register
class Evolution(Search):
    """Generations of configurations, each made of the best `parents` before it by crossover and mutation.

        generation 0          x ~ uniform
        even children         x_k = a_k or b_k, with probability 1/2 each,   a, b ~ the best `parents`
        odd children          x_k ~ uniform with probability `mutation`, else a_k

    with x_k the value at key k (of a subset, whether it has an item), a and b two different parents; the best are those
    of all generations, by the score and, where it is equal, by what they cost. A child that was tried before, or is no
    valid recipe, is made again, and where there seems to be no new one, it is drawn like the first. A generation is
    `population` arms, which wait for those before it alone, so all of it can run at a time.

    Space: lists, choices, ranges, subsets. With `adapter.layers: {subset: ...}` and a choice of adapters it finds which
    layers train and how, as fine-tuning search does.
    State: none beyond the arms and their scores, as arm i draws from (seed, i).
    Source: the search of Guo et al., "Single Path One-Shot Neural Architecture Search with Uniform Sampling", ECCV
    2020, arXiv 1904.00420, by which Eustratiadis et al., "Neural Fine-Tuning Search for Few-Shot Learning", ICLR 2024,
    arXiv 2306.09295, choose what adapts in each layer; settings are the former's, scaled to trainings.
    Departures: every arm is trained for itself, where both score parts of one network that shares its weights: their
    `population` is 50, with 10 parents and 20 generations, of which one half is crossed and the other mutated; here the
    two alternate, so that any beginning of a generation has both.
    """

    aliases = {
        "neural_fine_tuning_search nfts": "--method evolution",
    }

    config: Config

    class Config(MethodConfig):
        population: int = Field(10, ge=2, description="arms of a generation")
        parents: int = Field(4, ge=2, description="how many of the best have children")
        mutation: float = Field(0.1, gt=0, le=1, description="probability with which a value is drawn anew")

        @model_validator(mode="after")
        def _enough(self) -> Evolution.Config:
            if self.parents > self.population:
                raise ValueError(
                    f"parents: {self.parents} are more than the {self.population} of the first generation"
                )
            return self

    def known(self, index: int) -> int:
        return index - index % self.config.population

    def propose(self, index: int, known: Known) -> Genes | None:
        rng = self.rng(index)
        if index < self.config.population:
            return self.new(known, lambda: self.draw(rng))
        parents = [trial.genes for trial in best_first(known.trials)[: self.config.parents]]
        child = self._cross if index % 2 == 0 else self._mutate
        return self.new(known, lambda: child(parents, rng), lambda: self.draw(rng))

    def _cross(self, parents: Sequence[Genes], rng: Random) -> Genes:
        return tuple(map(rng.choice, zip(*rng.sample(parents, 2), strict=True)))

    def _mutate(self, parents: Sequence[Genes], rng: Random) -> Genes:
        parent = rng.choice(parents)
        return tuple(
            gene.draw(rng) if rng.random() < self.config.mutation else held
            for gene, held in zip(self.genes, parent, strict=True)
        )
