"""FineGates: rows and columns of the weights are gated, and a share of the gates is driven shut."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated

import torch
from torch import Tensor, nn

from lrft.core.activations import OnActivations
from lrft.core.adapter import Adapter, Shared
from lrft.core.context import real_tokens, recomputing
from lrft.core.frozen import FrozenLinear
from lrft.core.params import Site
from lrft.ops.gains import scaled
from lrft.registry.axes import ADAPTERS
from lrft.registry.config import ADDED, AdapterConfig, Field, Literal

MIDDLE, WIDTH = 0.5, 0.5  # of the clip, and of the normal distribution that the penalty counts open gates by


class Sites(Shared):
    """How many sites there are, which the penalty is the mean over."""

    def __init__(self, count: int) -> None:
        super().__init__()
        self.count = count


@ADAPTERS.register
class FineGates(OnActivations):
    """Stochastic gates on the inputs and outputs of every map; the closed ones are rows and columns to cut out.

        y  = z_r * ((z_c * x) W^T + b),   W' = diag(z_r) W diag(z_c),  b' = z_r * b
        z  = clip(tanh(a) + e + 0.5, 0, 1),  e ~ N(0, `noise`^2) in training, 0 in evaluation and in the merge
        loss += `strength` * mean over sites of (|open(a_r) - k| + |open(a_c) - k|) / 2,  k = 1 - `target`
        open(a) = mean over j of Phi((tanh(a_j) + 0.5) / 0.5)
        with `shares: kurtosis`   open(a) = sum over the j that are not shut of w_j Phi((tanh(a_j) + 0.5) / 0.5)
                                  w_c = softmax(-sqrt(kurtosis of the columns of V) / `temperature`), w_r of its rows
                                  V = W diag(mean of x over the tokens), without what is shut

    with Phi the standard normal distribution function. e is drawn once a forward pass and vector, and shared by all its
    tokens. A gate with tanh(a) <= -0.5 is shut: its row or column of W' is exactly 0, and can be cut out.

    Shapes: a_c (in), a_r (out) ~ N(1, 0.1^2), so that tanh(a) is about 0.76, z = 1 and the model the pretrained one in
    evaluation at step 0. There the clip passes a gradient only where the noise reaches under it; the penalty always
    passes one.
    Trains: in + out numbers per site. Kept of a token beside: x and the map's output, once each. With `shares:
    kurtosis` every pass decodes W once more and forms V, which is not kept; w has no gradient.
    Source: "FineGates: LLMs Finetuning with Compression using Stochastic Gates", arXiv 2412.12951, in the form of its
    later version, "Train Less, Infer Faster", AISTATS 2026, arXiv 2602.09169, and the authors' code (jsvir/FineGates).
    Departures: a map without a bias gets none (the code draws one). Biases train where `trainable` names them, and the
    classifier's head with `model.head`. Kurtosis, off in the code and in its words very slow, is as there (of z-scores
    by the unbiased deviation, a constant row having 0) but for padding, which the mean of x leaves out. The low rank
    inside the gates is left out. Merged weights keep their shapes, with rows and columns of zeros.
    Advice: a learning rate of 1e-3, a constant schedule, no weight decay.
    """

    aliases = {
        "stochastic_gates": "adapter: finegates",
        "kurt_tau": "adapter: {method: finegates, shares: kurtosis, temperature: 100}",
    }
    provides = {"adapters", "mergeable", "saturated", "unfolded"}
    roles = {"columns": "magnitude", "rows": "magnitude"}

    config: Config

    class Config(AdapterConfig):
        target: float = Field(0.4, ge=0, lt=1, description="share of rows and of columns that is to be shut")
        strength: float = Field(50.0, gt=0, le=1_000_000, description="weight of the penalty")
        noise: float = Field(
            0.1, ge=0, le=1, description="standard deviation of the gates' noise in training"
        )
        shares: Annotated[Literal["mean", "kurtosis"], ADDED] = Field(
            "mean",
            description="every gate counts alike in the share of open ones, or by the kurtosis of what it lets pass",
        )
        temperature: Annotated[float, ADDED] = Field(100.0, gt=0, description="of `shares: kurtosis`")

    def __init__(self, config: Config, site: Site, sites: int = 1) -> None:
        super().__init__(config, site)
        self.sites = sites
        self.weights: tuple[Tensor, Tensor] | None = None  # of columns and rows, by the last pass in training
        self.columns = nn.Parameter(torch.empty(site.in_features))
        self.rows = nn.Parameter(torch.empty(site.out_features))
        self.reset()

    @classmethod
    def shared(cls, config: FineGates.Config, sites: Mapping[str, Site], hidden_size: int) -> Shared | None:
        return Sites(len(sites))

    @classmethod
    def at(cls, config: FineGates.Config, site: Site, shared: Shared | None = None) -> Adapter:
        return cls(config, site, shared.count if isinstance(shared, Sites) else 1)

    def reset(self) -> None:
        for logits in (self.columns, self.rows):
            nn.init.normal_(logits, mean=1.0, std=0.1)

    def forward(self, x: Tensor, base: FrozenLinear) -> Tensor:
        if self.training and self.config.shares == "kurtosis" and not recomputing():
            self.weights = self.weigh(x, base)
        noise = self.config.noise if self.training else 0.0
        columns, rows = (self.at_use(gates(logits, noise)) for logits in (self.columns, self.rows))
        return scaled(base(scaled(x, columns)), rows)

    def inputs(self) -> Tensor:
        return self.at_use(gates(self.columns))

    def outputs(self, y: Tensor) -> Tensor:
        return scaled(y, self.at_use(gates(self.rows)))

    @torch.no_grad()
    def weigh(self, x: Tensor, base: FrozenLinear) -> tuple[Tensor, Tensor]:
        """How much each column and each row counts in the share of open ones, (in,) and (out,): 0 where shut."""
        real = None if x.is_meta else real_tokens(x)
        mean = (x.reshape(-1, x.shape[-1]) if real is None else x[real]).float().mean(0)
        columns, rows = gates(self.columns) > 0, gates(self.rows) > 0
        V = base.weight().float() * mean
        V = V if V.is_meta else V[rows][:, columns]  # without numbers all are open, as at the start
        found = V.new_zeros(len(columns)), V.new_zeros(len(rows))
        for weights, live, own in zip(found, (columns, rows), (V, V.mT), strict=True):
            weights.masked_scatter_(
                live, torch.softmax(-kurtosis_of(own).sqrt() / self.config.temperature, dim=0)
            )
        return found

    def penalty(self) -> Tensor | None:
        weights, self.weights = self.weights, None
        if weights is None and self.config.shares == "kurtosis":
            return None  # nothing passed here
        columns, rows = (None, None) if weights is None else weights
        kept = 1 - self.config.target
        off = (open_share(self.columns, columns) - kept).abs() + (open_share(self.rows, rows) - kept).abs()
        return self.config.strength / self.sites * 0.5 * off

    @staticmethod
    def count(config: FineGates.Config, site: Site) -> int:
        return site.in_features + site.out_features


def gates(logits: Tensor, noise: float = 0.0) -> Tensor:
    """Z, of the shape of its logits."""
    middle = torch.tanh(logits) + MIDDLE
    if noise:
        middle = middle + noise * torch.randn_like(middle)
    return middle.clamp(0, 1)


def open_share(logits: Tensor, weights: Tensor | None = None) -> Tensor:
    """The expected share of open gates, as the penalty counts it; each by its weight, of which the sum is 1."""
    each: Tensor = torch.special.ndtr((torch.tanh(logits) + MIDDLE) / WIDTH)
    return each.mean() if weights is None else (each * weights).sum()


def kurtosis_of(matrix: Tensor) -> Tensor:
    """The mean fourth power of the z-scores of every column; 0 of one whose entries are all the same."""
    scores = (matrix - matrix.mean(0)) / matrix.std(0)
    return scores.nan_to_num(0.0, 0.0, 0.0).pow(4).mean(0)
