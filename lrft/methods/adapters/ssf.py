"""SSF: what every linear map and every norm gives is scaled and shifted, channel by channel."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from lrft.core.activations import OnActivations
from lrft.core.adapter import Adapter
from lrft.core.block import OfParameters
from lrft.core.params import Site
from lrft.core.shared import Shared
from lrft.ops.gains import scaled
from lrft.registry.axes import ADAPTERS
from lrft.registry.config import AdapterConfig, Field


@ADAPTERS.register
class SSF(OnActivations):
    """Scaling and shifting your features: one gain and one offset for every channel that an operation gives.

        y  = gamma * f(x) + beta                              f a linear map or a norm
        W' = diag(gamma) W,       b' = gamma * b + beta       of a linear map
        w' = gamma * (c + w) - c, b' = gamma * b + beta       of a norm that multiplies by c + w, c = 0 or 1 (Gemma)

    Shapes: gamma (out) ~ N(1, `std`^2), beta (out) ~ N(0, `std`^2), so the model is not quite the pretrained one at
    step 0; `std: 0` begins as it. Without `shift` there is no beta.
    Trains: 2 out numbers per linear map and per norm, out without `shift`. Kept of a token beside: f(x), once.
    Source: Lian et al., "Scaling & Shifting Your Features: A New Baseline for Efficient Model Tuning", NeurIPS 2022,
    arXiv 2210.08823, and the authors' code (dongzelian/SSF).
    Departures: carried from vision transformers to language models: the patch embedding has no counterpart, and the
    head trains where `trainable` names it.
    Advice: `targets: all-linear` means all norms too; patterns choose. A beta is merged into a bias, which most
    language models do not have: `shift: false` merges on any of them. No weight decay, which would pull gamma to 0.
    Plain LoRA cannot say a norm.
    """

    aliases = {
        "scale_shift scaling_and_shifting": "adapter: ssf",
    }
    site_kinds = ("linear", "norm")
    provides = {"adapters", "mergeable", "block_parameters", "unfolded", "moved_start"}
    roles = {"gamma": "magnitude", "beta": "vector"}

    config: Config

    class Config(AdapterConfig):
        shift: bool = Field(True, description="add a trained offset; a merge then needs a bias at every site")
        std: float = Field(0.02, ge=0, le=1, description="standard deviation of gamma and beta at step 0")

    @classmethod
    def at(cls, config: SSF.Config, site: Site, shared: Shared | None = None) -> Adapter:
        """Around a norm it is a change of the norm's own parameters."""
        return SSFNorm(config, site) if site.kind == "norm" else cls(config, site)

    @classmethod
    def why_not_merged(cls, config: SSF.Config, site: Site) -> str:
        if not config.shift or site.has_bias:
            return ""
        return (
            f"ssf gives {site.name} an offset, and the architecture has no bias there to merge it into; keep the "
            "adapter separate, or train with adapter.shift: false"
        )

    def __init__(self, config: Config, site: Site) -> None:
        super().__init__(config, site)
        self.gamma = nn.Parameter(torch.ones(site.out_features))
        if config.shift:
            self.beta = nn.Parameter(torch.zeros(site.out_features))
        disturb(self, config.std)

    def reset(self) -> None:
        nn.init.ones_(self.gamma)
        if self.config.shift:
            nn.init.zeros_(self.beta)

    def outputs(self, y: Tensor) -> Tensor:
        return scaled(y, self.at_use(self.gamma), self.at_use(self.beta) if self.config.shift else None)

    @staticmethod
    def count(config: SSF.Config, site: Site) -> int:
        return site.out_features * (2 if config.shift else 1)


class SSFNorm(OfParameters):
    """The same of a norm."""

    name = "ssf"
    wide = True
    site_kinds = ("norm",)
    provides = {"adapters", "mergeable", "block_parameters", "unfolded", "moved_start"}
    roles = {"gamma": "magnitude", "beta": "vector"}
    count = staticmethod(SSF.count)
    why_not_merged = SSF.why_not_merged

    config: SSF.Config

    def __init__(self, config: SSF.Config, site: Site) -> None:
        super().__init__(config, site)
        self.gamma = nn.Parameter(torch.ones(site.out_features))
        if config.shift:
            self.beta = nn.Parameter(torch.zeros(site.out_features))
        disturb(self, config.std)
        self.offset = 0.0

    def fit(self, block: nn.Module) -> None:
        """Find out what the norm adds to its weight before it multiplies.

        Raises:
            ValueError: it trains itself, or multiplies by something else.
        """
        for name, parameter in block.named_parameters():
            if parameter.requires_grad:
                raise ValueError(
                    f"its {name} trains itself; leave it out of trainable, or out of adapter.targets"
                )
        if not block.get_parameter("weight").is_meta:
            self.offset = added_to_weight(block)

    def forward(self, *arguments: Any, base: nn.Module, **named: Any) -> Tensor:  # type: ignore[override]
        """What the norm gives, scaled and shifted."""
        dtype = self.compute_dtype or self.gamma.dtype
        beta = self.beta.to(dtype) if self.config.shift else None
        return scaled(base(*arguments, **named), self.gamma.to(dtype), beta)

    def merged_parameters(self, own: Any) -> dict[str, Tensor]:
        merged = {"weight": self.gamma * (own["weight"] + self.offset) - self.offset}
        if "bias" in own:
            merged["bias"] = self.gamma * own["bias"] + (self.beta if self.config.shift else 0.0)
        return merged


@torch.no_grad()
def disturb(adapter: nn.Module, std: float) -> None:
    """Add N(0, std^2) to every number."""
    for parameter in adapter.parameters():
        parameter.add_(std * torch.randn_like(parameter))


@torch.no_grad()
def added_to_weight(block: nn.Module) -> float:
    """C of a norm that multiplies by c + weight: 0, or 1.

    Raises:
        ValueError: it is neither, or takes more than what it normalises.
    """
    weight = block.get_parameter("weight")
    x = torch.linspace(-1, 2, 3 * len(weight), device=weight.device).view(1, 3, -1).to(weight.dtype)
    held = {name: torch.zeros_like(parameter) for name, parameter in block.named_parameters()}
    try:
        at_0, at_1 = (
            functional_call(block, {**held, "weight": torch.full_like(weight, w)}, (x,)) for w in (0.0, 1.0)
        )
    except Exception as error:  # whatever a norm's own code raises: it is of another form
        raise ValueError(f"its norm is of a form that is not known ({type(error).__name__})") from None
    if not at_0.any():
        return 0.0
    if torch.allclose(at_1, 2 * at_0, rtol=1e-2):
        return 1.0
    raise ValueError("its norm multiplies by something else than its weight, or 1 and its weight")
