"""S2-LoRA: sites of one shape share both factors, and each keeps few of their components."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from lrft.core.adapter import Additive, Branch, Factors, Formed, LowRank, PeftForm, Shared
from lrft.core.params import Site
from lrft.core.peft import lora_keys
from lrft.core.settling import Settling
from lrft.core.shared import kept_apart
from lrft.registry.axes import ADAPTERS
from lrft.registry.config import AdapterConfig, Field
from lrft.registry.json import Json


def s2_form_keys(config: S2LoRA.Config, with_start: bool) -> dict[str, Json]:
    """A plain LoRA whose scale is 1."""
    return lora_keys(config.rank, config.rank, config.dropout)


def s2_form_here(adapter: S2LoRA) -> dict[str, Json]:
    """Of the rank that the site has kept."""
    rank = max(1, int(adapter.e.count_nonzero()))
    return lora_keys(rank, rank, adapter.config.dropout)


def s2_form_tensors(adapter: S2LoRA, start: S2LoRA | None) -> dict[str, Tensor]:
    """The components that are kept; PEFT holds one of zeros where none is."""
    A, B = adapter.factors()
    if not len(A):
        A, B = A.new_zeros(1, adapter.site.in_features), B.new_zeros(adapter.site.out_features, 1)
    return {"A": A, "B": B}


class Pairs(Shared):
    """A (r, in) and B (out, r) for every shape of site; they train."""

    def __init__(self, config: S2LoRA.Config, sites: Mapping[str, Site]) -> None:
        super().__init__()
        for out, width in sorted({(site.out_features, site.in_features) for site in sites.values()}):
            for name, shape in (("A", (config.rank, width)), ("B", (out, config.rank))):
                matrix = nn.Parameter(torch.empty(shape))
                nn.init.kaiming_uniform_(matrix, a=math.sqrt(5))
                self.register_parameter(f"{name}_{out}_{width}", matrix)
        self.roles = {name: f"lora_{name[0]}" for name, _ in self.named_parameters()}  # type: ignore[misc]

    def of(self, site: Site) -> tuple[Tensor, Tensor]:
        """A and B of a site."""
        shape = f"{site.out_features}_{site.in_features}"
        return self.get_parameter(f"A_{shape}"), self.get_parameter(f"B_{shape}")

    def peft_tensors(self) -> dict[str, Tensor]:
        """None: a plain LoRA has its own factors at every site."""
        return {}


@ADAPTERS.register
class S2LoRA(Settling, LowRank):
    """Sparsely shared low-rank adaptation: trained factors for all sites of a shape, a sparse diagonal for each.

        y  = x W^T + b + ((drop(x) A^T) * e) B^T
        W' = W + B diag(e) A
        e <- sign(e) max(|e| - lr t, 0)      after every update of e with the rate lr

    with r = `rank`, t = `threshold`, no scale; A and B are those of all adapted sites with as many inputs and outputs,
    e is the site's own. drop is dropout of probability `dropout`. The last line is the proximal step of the penalty
    t |e|_1, taken beside the optimizer and not through its moments: what it brings to 0 is exactly 0, and comes back
    when a gradient moves it by more than lr t.

    Shapes: A (r, in) ~ U(-1/sqrt(in), 1/sqrt(in)), B (out, r) ~ U(-1/sqrt(r), 1/sqrt(r)), e (r) = 0, so W' = W
    at step 0, and the first step moves e alone.
    Trains: r numbers per site, and r (in + out) once for every shape. diag(e) A is formed in the forward and again in
    the backward pass. Exported as a plain LoRA of the components with e != 0, rank by rank.
    Source: Liu et al., "Sparsely Shared LoRA on Whisper for Child Speech Recognition", 2023, arXiv 2309.11756, of which
    the abstract and summaries were read: factors shared globally, a sparse diagonal for each matrix. Carried from
    speech recognition to the linear layers of a language model.
    Departures: settled here, for want of the paper's text and of any code: the start, the proximal step and its default
    strength, one pair a shape where models have layers of several, no penalty for orthogonality, no scale.
    Advice: with Adam, whose updates are of the size of lr, `threshold` is the share of steps' agreement below which a
    component stays 0: 0 keeps all, 1 none. Gradients of A and B are sums over the sites.
    """

    aliases = {"sparsely_shared_lora": "adapter: s2_lora"}
    provides = {"adapters", "mergeable", "linear_delta"}
    roles = {"e": "core"}
    peft = PeftForm(s2_form_keys, s2_form_tensors, keys_here=s2_form_here)

    config: Config

    class Config(AdapterConfig):
        rank: int = Field(32, gt=0, le=65_536, description="components that the sites of a shape share")
        threshold: float = Field(
            0.1, ge=0, description="strength of the pull of e to 0, in units of the rate"
        )
        dropout: float = Field(0.0, ge=0, lt=1)

    @classmethod
    def shared(cls, config: Config, sites: Mapping[str, Site], hidden_size: int) -> Shared | None:
        return Pairs(config, sites)

    @classmethod
    def at(cls, config: Config, site: Site, shared: Shared | None = None) -> S2LoRA:
        return cls(config, site, shared)

    def __init__(self, config: Config, site: Site, shared: Shared | None = None) -> None:
        super().__init__(config, site)
        self.pairs = kept_apart(shared, Pairs, lambda: Pairs(config, {site.name: site}))
        self.e = nn.Parameter(torch.zeros(config.rank))

    def reset(self) -> None:
        """The site's own diagonal back to 0; what sites share stays."""
        nn.init.zeros_(self.e)

    def branch(self) -> Branch:
        def form(dtype: torch.dtype, e: Tensor, A: Tensor, B: Tensor) -> tuple[Tensor, Tensor]:
            return e[:, None] * A, B

        def pull(
            dtype: torch.dtype, down: Tensor | None, up: Tensor | None, e: Tensor, A: Tensor, B: Tensor
        ) -> tuple[Tensor | None, ...]:
            assert down is not None
            return (down * A).sum(dim=1), e[:, None] * down, up

        formed = Formed((self.e, *self.pairs[0].of(self.site)), form, pull)
        return Branch(dropout=self.config.dropout, formed=formed)

    @torch.no_grad()
    def factors(self, start: Additive | None = None) -> Factors:
        """The components with e != 0."""
        assert start is None, "no init takes a start off the base for this method"
        A, B = self.pairs[0].of(self.site)
        live = self.e.nonzero().flatten()
        return self.e[live, None] * A[live], B[:, live]

    def settle(self, rates: Mapping[Tensor, float]) -> None:
        if self.e in rates:
            shrunk = self.e.abs().sub_(rates[self.e] * self.config.threshold).clamp_min_(0)
            self.e.copy_(self.e.sign() * shrunk)

    @staticmethod
    def count(config: Config, site: Site) -> int:
        return int(config.rank)
