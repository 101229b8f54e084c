"""LN-tuning: the norms of the model train, and nothing else."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from lrft.core.adapter import PeftForm
from lrft.core.block import OfParameters
from lrft.core.params import Site
from lrft.registry.axes import ADAPTERS
from lrft.registry.config import AdapterConfig
from lrft.registry.json import Json


def ln_form_keys(config: AdapterConfig, with_start: bool) -> dict[str, Json]:
    """PEFT's keys of the method."""
    return {"peft_type": "LN_TUNING"}


@ADAPTERS.register
class LNTuning(OfParameters):
    """The weight of every norm, and its bias where it has one, train in the place of the model's own.

        y = norm(x; w, b)        whatever the norm computes with its weight and bias: w * x / rms(x), (1 + w) * ..., ...

    The trained w and b are the adapter's, in float32; the model's stay as they are, so that switched off it is the
    pretrained model.

    Shapes: w, b (d), d the norm's width; at step 0 the model's own, so nothing changes.
    Trains: d numbers per norm, 2 d with a bias. `targets: all-linear` means all norms, those of queries and keys too. A
    norm by the root mean square keeps its input of a token, as the frozen one does.
    Source: Zhao et al., "Tuning LayerNorm in Attention: Towards Efficient Multi-Modal LLM Finetuning", ICLR 2024,
    arXiv 2312.11420, as in PEFT's layer, checked on the same numbers; the paper was not read.
    Departures: carried from a multi-modal model to a language model. `trainable: ['*norm.weight']` trains the same
    numbers as the model's own, which then has no switch and is saved in its precision.
    Advice: it merges by writing the norms. Plain LoRA cannot say it.
    """

    aliases = {
        "layernorm_tuning norm_tuning": "adapter: ln_tuning",
    }
    site_kinds = ("norm",)
    provides = {"adapters", "mergeable", "block_parameters", "unfolded"}
    roles = {"weight": "vector", "bias": "vector"}
    peft = PeftForm(
        ln_form_keys,
        names={"weight": "ln_tuning_layers.weight", "bias": "ln_tuning_layers.bias"},
        lacks=("bias", "fan_in_fan_out"),
    )

    def __init__(self, config: AdapterConfig, site: Site) -> None:
        super().__init__(config, site)
        self.weight = nn.Parameter(torch.ones(site.out_features))
        if site.has_bias:
            self.bias = nn.Parameter(torch.zeros(site.out_features))

    @torch.no_grad()
    def fit(self, block: nn.Module) -> None:
        """Begin with the norm's own numbers.

        Raises:
            ValueError: they train themselves.
        """
        for name, parameter in self.named_parameters():
            own = block.get_parameter(name)
            if own.requires_grad:
                raise ValueError(
                    f"its {name} trains itself; leave it out of trainable, or out of adapter.targets"
                )
            if not own.is_meta:
                parameter.copy_(own)

    def forward(self, *arguments: Any, base: nn.Module, **named: Any) -> Any:  # type: ignore[override]
        """What the norm gives with the trained numbers, in the precision of its own."""
        # Views, which no module holds as its own: a norm in one node then keeps its input alone of a token.
        own = {name: p.to(base.get_parameter(name).dtype).view(-1) for name, p in self.named_parameters()}
        return functional_call(base, own, arguments, named)

    def merged_parameters(self, own: Any) -> dict[str, Tensor]:
        return {name: parameter.detach() for name, parameter in self.named_parameters()}

    @staticmethod
    def count(config: AdapterConfig, site: Site) -> int:
        return site.out_features * (2 if site.has_bias else 1)
