"""X-LoRA: given LoRA adapters, mixed token by token by a classifier that reads the model's own last hidden state."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from lrft.core.adapter import Adapter, Shared
from lrft.core.frozen import FrozenLinear
from lrft.core.params import Site
from lrft.methods.adapters._given import Factors, read_lora
from lrft.methods.adapters._xlora_classifier import Classifier
from lrft.ops.gated_term import gated_low_rank
from lrft.registry.axes import ADAPTERS
from lrft.registry.config import AdapterConfig, Field, model_validator
from lrft.registry.errors import RecipeError

KEY = "adapter.adapters"


@ADAPTERS.register
class XLoRA(Adapter):
    """Mixture of n given LoRA adapters, weighed for every token by a classifier of the model's last hidden state.

        y = x W^T + b + g sum_a c_a(token) s_a (drop_a(x) A_a^T) B_a^T,  a = 1 ... n
        c = softmax(classifier(h) / temperature)

    with `adapters` the n folders, A_a, B_a, s_a, drop_a each adapter's own factors, scale and dropout (ranks may
    differ), g = `global_weight`, `temperature`; h (hidden) is the last hidden state of a first pass through the model
    in which every c_a is `scaling_pass_value`. The classifier is `depth` linear layers with biases, `size` wide between
    them, with ReLU and dropout of probability `dropout` there; it gives one c for all sites, or one for each with
    `layerwise: true`. With `softmax: false` c is the classifier's output itself. `top_k: k` keeps the k largest c_a
    (they then sum to less than 1); `softmax_topk: true` makes them sum to 1 by a softmax of their own.

    Shapes: A_a (r_a, in), B_a (out, r_a), as given; c (n) a token, or (adapted layers, n). At step 0 the adapters are
    mixed as the untrained classifier says, so W' is not W.
    Trains: the classifier, in float32, (hidden + 1) n numbers at depth 1, shared by all sites; with
    `train_adapters: true` the factors too, sum_a r_a (in + out) numbers per site.
    Source: Buehler and Buehler, "X-LoRA", 2024, arXiv 2402.07148; the authors' code and PEFT's.
    Departures: the softmax of `softmax_topk` is over each token's kept weights (the authors' code takes it over the
    whole batch); `top_k` does not act on the first pass, whose scalings are equal; `softmax: true` with
    `softmax_topk: true` is refused.
    Advice: two passes a step. Generation may use a cache: the first pass keeps one of its own beside it.
    """

    provides = {"adapters", "experts"}
    requires = {"eager"}
    roles = {"A": "lora_A", "B": "lora_B"}

    config: Config

    class Config(AdapterConfig):
        adapters: list[str] = Field(
            min_length=1,
            description="folders of LoRA adapters of this base model, or of runs that trained one",
        )
        depth: int = Field(1, gt=0, le=16, description="linear layers of the classifier")
        size: int = Field(2048, gt=0, description="width between the classifier's layers")
        dropout: float = Field(0.2, ge=0, lt=1, description="between the classifier's layers")
        softmax: bool = Field(True, description="make the n scalings sum to 1")
        temperature: float = Field(1.0, gt=0, description="of that softmax")
        top_k: int | None = Field(None, gt=0, description="keep the k largest scalings of every token")
        softmax_topk: bool = Field(False, description="make the kept scalings sum to 1, instead of `softmax`")
        layerwise: bool = Field(False, description="a scaling for every adapted layer")
        scaling_pass_value: float = Field(0.0, description="every scaling in the first pass")
        global_weight: float = Field(1.0, description="multiplies every adapter's output")
        train_adapters: bool = Field(False, description="train the given adapters as well")

        @model_validator(mode="after")
        def _check_top_k(self) -> XLoRA.Config:
            if self.top_k is not None and self.top_k > len(self.adapters):
                raise ValueError(f"top_k is {self.top_k}, but there are {len(self.adapters)} adapters")
            if self.softmax_topk and (self.top_k is None or self.softmax):
                raise ValueError("softmax_topk needs top_k, and softmax: false, which it replaces")
            return self

    owner: Tensor
    scales: Tensor

    def __init__(self, config: Config, site: Site, classifier: Classifier | None = None) -> None:
        super().__init__(config, site)
        self._classifier = (classifier,)  # in a tuple, so that it is no submodule of every site
        parts = _factors(config, site, classifier)
        for folder, part in zip(config.adapters, parts, strict=True):
            if part.A.shape[1] != site.in_features or part.B.shape[0] != site.out_features:
                shape = f"{part.B.shape[0]} x {part.A.shape[1]}"
                raise ValueError(
                    f"{folder} changes a {shape} weight, but this is {site.out_features} x {site.in_features}"
                )
        self.A = nn.Parameter(torch.cat([part.A for part in parts]))
        self.B = nn.Parameter(torch.cat([part.B for part in parts], dim=1))
        trained = config.train_adapters and self.A.shape[0] > 0
        self.A.requires_grad_(trained)
        self.B.requires_grad_(trained)
        self._parts = [(part.A.shape[0], part.dropout) for part in parts]
        owner = [a for a, (rank, _) in enumerate(self._parts) for _ in range(rank)]
        self.register_buffer("owner", torch.tensor(owner, dtype=torch.int64), persistent=False)
        self.register_buffer("scales", torch.tensor([part.scale for part in parts]))

    @classmethod
    def shared(cls, config: Config, sites: Mapping[str, Site], hidden_size: int) -> Shared | None:
        """The classifier.

        Raises:
            RecipeError: an adapter changes a layer that `adapter.targets` leaves out, or that the model lacks.
        """
        given = [read_lora(folder, KEY) for folder in config.adapters]
        for folder, factors in zip(config.adapters, given, strict=True):
            if strange := sorted(factors.keys() - sites.keys()):
                raise RecipeError(
                    f"{folder} changes {strange[0]}, which is no adapted layer of this model; "
                    "use adapters of this model, and adapter.targets: all-linear",
                    KEY,
                )
        names = [name for name in sites if any(name in factors for factors in given)]
        return Classifier(config, names, hidden_size, given)

    @classmethod
    def at(cls, config: Config, site: Site, shared: Shared | None = None) -> XLoRA:
        return cls(config, site, shared if isinstance(shared, Classifier) else None)

    def reset(self) -> None:
        """Raises: NotImplementedError, as the adapters are given."""
        raise NotImplementedError("given adapters have no start to go back to")

    def forward(self, x: Tensor, base: FrozenLinear) -> Tensor:
        (classifier,) = self._classifier
        idle = self.A.shape[0] == 0 or (classifier is not None and classifier.idle)
        return base(x) if idle else base(x) + self.update(x)

    def update(self, x: Tensor) -> Tensor:
        (classifier,) = self._classifier
        if classifier is None:
            raise ValueError(f"{self.site.name}: the mixture needs its classifier; build it with `shared`")
        scalings = classifier.at(self.site.name, x)
        gates = (self.config.global_weight * scalings * self.scales)[..., self.owner]
        dropped = self.training and any(p > 0 for _, p in self._parts)
        return gated_low_rank(x, self.A, self.B, gates, self.compute_dtype, self._parts if dropped else ())

    @staticmethod
    def count(config: Config, site: Site) -> int:
        if not config.train_adapters:
            return 0
        return sum(part.A.numel() + part.B.numel() for part in _factors(config, site))


def _factors(config: XLoRA.Config, site: Site, classifier: Classifier | None = None) -> list[Factors]:
    """Each adapter's factors at the site, of rank 0 where an adapter has none."""
    if classifier is not None and classifier.given:
        given = classifier.given
    else:
        given = [read_lora(folder, KEY) for folder in config.adapters]
    A = torch.zeros(0, site.in_features, device="cpu")
    B = torch.zeros(site.out_features, 0, device="cpu")
    return [factors.get(site.name, Factors(A, B, 0.0, 0.0)) for factors in given]
