"""FLix: every feature of the data has a low-rank change of its own, and a row gets the sum of its features'."""

from __future__ import annotations

from typing import Annotated

import torch
from torch import Tensor, nn

from lrft.core.adapter import Adapter, Branch, LowRank
from lrft.core.features import token_features
from lrft.core.frozen import FrozenLinear
from lrft.core.params import Site
from lrft.methods.adapters._pair import start_pair
from lrft.ops.gated_term import gated_low_rank
from lrft.registry.axes import ADAPTERS
from lrft.registry.config import AdapterConfig, Field, Iterator, Problem, RecipeView, model_validator


@ADAPTERS.register
class FLix(Adapter):
    """Featurized low-rank mixtures: a low-rank change for every language, task or other feature of a row, summed.

        y = x W^T + b + sum over the features f of the row of s_f (x A_f^T) B_f^T

    with the features that `data.features` names: `features` lists the values of each column, and every value is a
    feature f with factors of its own, of rank r_f = `rank`, or what `ranks` says for its column; s_f = `alpha` / r_f,
    or 1 without `alpha`. A column that is null in a row gives it no feature, so a row of an unseen language still gets
    its task's change; one without any feature gets W x. In training a row loses each feature that it has with
    probability `feature_dropout`, at all sites alike; what stays is not scaled up. Rows keep their own features packed.

    Shapes: A_f (r_f, in) ~ U(-1/sqrt(in), 1/sqrt(in)), B_f (out, r_f) = 0, stacked over the features, so W' = W at
    step 0.
    Trains: sum_f r_f (in + out) numbers per site. Factors of features that no row of a micro-batch has are left out of
    its products; they get a gradient of 0.
    Source: Lin et al., "Inducing Generalization across Languages and Tasks using Featurized Low-Rank Mixtures", 2024,
    arXiv 2402.17934 (first "Multitask Multilingual Model Adaptation with Featurized Low-Rank Mixtures"), of which the
    abstract and summaries alone could be read; there is no public code. Settled here: the sum is plain, factors start
    as LoRA's, and a feature is dropped for a whole row; ranks and the rate of dropping were not to be had.
    Departures: what could not be read is assumed, see above; ranks are set by column.
    Advice: a merged model is one for rows of a certain set of features: `lrft merge --features language=sw,task=qa`.
    A feature that no row of training has stays at its start.
    """

    aliases = {
        "featurized_low_rank_mixtures": "adapter: {method: flix, features: {task: [a, b]}}\ndata: {features: [task]}",
    }
    provides = {"adapters", "features"}
    requires = {"eager"}
    roles = {"A": "lora_A", "B": "lora_B"}

    config: Config

    class Config(AdapterConfig):
        features: dict[str, Annotated[list[Annotated[str, Field(min_length=1)]], Field(min_length=1)]] = (
            Field(min_length=1, description="values of each column of `data.features`, as {task: [qa, ner]}")
        )
        rank: int = Field(8, gt=0, le=65_536, description="rank of each feature")
        ranks: dict[str, Annotated[int, Field(gt=0, le=65_536)]] = Field(
            default_factory=dict, description="rank of the features of a column, instead of `rank`"
        )
        alpha: float | None = Field(
            None, gt=0, le=1_000_000, description="a feature's scale is alpha / its rank; by default 1"
        )
        feature_dropout: float = Field(
            0.1, ge=0, lt=1, description="probability that a row loses a feature in training"
        )

        @model_validator(mode="after")
        def _check_columns(self) -> FLix.Config:
            for column, values in self.features.items():
                if twice := sorted({value for value in values if values.count(value) > 1}):
                    raise ValueError(f"features of {column} name {', '.join(twice)} twice; remove one")
            if others := sorted(self.ranks.keys() - self.features.keys()):
                known = ", ".join(self.features)
                raise ValueError(
                    f"ranks name {', '.join(others)}, and features have {known}; write one of these"
                )
            return self

        def clashes(self, recipe: RecipeView) -> Iterator[Problem]:
            """Columns that no row's features are read from, or whose values have no change."""
            read = recipe["data.features"]
            if isinstance(read, list) and sorted(map(str, read)) != sorted(self.features):
                columns = ", ".join(self.features)
                yield Problem("data.features", f"adapter.features are of {columns}; write [{columns}]")

    def __init__(self, config: Config, site: Site) -> None:
        super().__init__(config, site)
        self.ranks = ranks_of(config)
        self.names = self.row_features(config)
        self.A = nn.Parameter(torch.empty(sum(self.ranks), site.in_features))
        self.B = nn.Parameter(torch.empty(site.out_features, sum(self.ranks)))
        self.reset()

    @staticmethod
    def row_features(config: FLix.Config) -> tuple[str, ...]:
        return tuple(f"{column}={value}" for column, values in config.features.items() for value in values)

    def reset(self) -> None:
        start_pair(self.A, self.B)

    def forward(self, x: Tensor, base: FrozenLinear) -> Tensor:
        return base(x) + self.update(x)

    def update(self, x: Tensor) -> Tensor:
        """What is added for the features of each token, (..., in) -> (..., out)."""
        drop = self.config.feature_dropout if self.training else 0.0
        having = token_features(x, self.names, self.site.name, drop)
        if having is None or not having.present:
            return (0 * (self.A.sum() + self.B.sum())).to(x.dtype)  # a step of such rows has gradients, of 0
        components = [k for k in having.present for _ in range(self.ranks[k])]
        A, B = self._of(having.present)
        return gated_low_rank(x, A, B, having.mask[..., components], self.compute_dtype)

    def _of(self, present: tuple[int, ...]) -> tuple[Tensor, Tensor]:
        """A (r, in), the scales included, and B (out, r) of these features alone."""
        alpha, rows, columns = self.config.alpha, self.A.split(self.ranks), self.B.split(self.ranks, dim=1)
        scales = [1.0 if alpha is None else alpha / self.ranks[k] for k in present]
        scaled = [rows[k] if s == 1 else s * rows[k] for k, s in zip(present, scales, strict=True)]
        return torch.cat(scaled), torch.cat([columns[k] for k in present], dim=1)

    @torch.no_grad()
    def of_features(self, features: tuple[str, ...]) -> Adapter:
        return OfFeatures(self, *self._of(tuple(k for k, name in enumerate(self.names) if name in features)))

    @staticmethod
    def count(config: FLix.Config, site: Site) -> int:
        return sum(ranks_of(config)) * (site.in_features + site.out_features)


class OfFeatures(LowRank):
    """What rows with a certain set of features go through: a low-rank change like any other."""

    name = "flix"
    provides = {"adapters", "mergeable", "linear_delta"}
    roles = {"A": "lora_A", "B": "lora_B"}

    def __init__(self, whole: FLix, A: Tensor, B: Tensor) -> None:
        super().__init__(whole.config, whole.site)
        self.compute_dtype = whole.compute_dtype
        self.A, self.B = nn.Parameter(A.clone()), nn.Parameter(B.clone())

    def branch(self) -> Branch:
        return Branch(self.A, self.B)


def ranks_of(config: FLix.Config) -> list[int]:
    """The rank of every feature, in the order of `row_features`."""
    return [
        config.ranks.get(column, config.rank) for column, values in config.features.items() for _ in values
    ]
