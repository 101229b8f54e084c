"""(IA)^3: one trained gain on every output of keys and values, and on every input of the last map of a block."""

from __future__ import annotations

import fnmatch
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from lrft.core.activations import OnActivations
from lrft.core.adapter import PeftForm
from lrft.core.params import Site
from lrft.core.peft import Settings, Tensors
from lrft.methods.adapters._given import OF_ALL, refuse_unread
from lrft.ops.gains import scaled
from lrft.registry.axes import ADAPTERS
from lrft.registry.config import AdapterConfig, Field
from lrft.registry.json import Json

LAST_MAPS = (  # of feed-forward blocks, by family
    "down_proj",
    "fc2",
    "fc_out",
    "dense_4h_to_h",
    "mlp.c_proj",
    "w2",
    "output_linear",
    "feed_forward.value",
)


def ia3_form_keys(config: IA3.Config, with_start: bool) -> dict[str, Json]:
    """PEFT's keys of the method; the patterns as one regular expression, which it matches whole."""
    patterns = LAST_MAPS if config.feedforward is None else config.feedforward
    either = "|".join(fnmatch.translate(pattern) for pattern in patterns)
    return {"peft_type": "IA3", "feedforward_modules": rf"(?:.*\.)?(?:{either})"}


def ia3_form_tensors(adapter: Any, start: Any) -> dict[str, Tensor]:
    """The gains as a column of the outputs or a row of the inputs."""
    assert start is None, "no init takes a start off the base for this method"
    return {"l": adapter.l[None] if adapter.on_inputs else adapter.l[:, None]}


def ia3_form_settings(keys: Mapping[str, Any], site: str) -> dict[str, Json] | None:
    """Of what PEFT wrote; the tensor of a site says whether it is on inputs or on outputs."""
    if keys.get("peft_type") != "IA3":
        return None
    refuse_unread(keys, OF_ALL | {"feedforward_modules", "init_ia3_weights"})
    return {}


def ia3_form_taken(settings: Settings, site: str, held: Tensors) -> tuple[Settings, Tensors]:
    """A row is of the inputs, a column of the outputs: `feedforward` where the default patterns say otherwise."""
    gains = held["l"]
    if gains.ndim != 2 or 1 not in gains.shape or gains.numel() == 1:
        raise ValueError(
            f"{site}.ia3_l is {tuple(gains.shape)}, neither a row nor a column; save it with PEFT"
        )
    on_inputs = gains.shape[0] == 1
    if on_inputs != IA3.Config().scales_inputs(site):
        settings = {**settings, "feedforward": [site] if on_inputs else []}
    return settings, {"l": gains.flatten()}


@ADAPTERS.register
class IA3(OnActivations):
    """Infused adapter by inhibiting and amplifying inner activations: a vector multiplies what a map gives or gets.

        y = l * (x W^T + b),   W' = diag(l) W,  b' = l * b       elsewhere, so on keys and values
        y = (l * x) W^T + b,   W' = W diag(l)                    at sites that `feedforward` names

    `feedforward` holds patterns of site names, by default the last maps of feed-forward blocks (down_proj), whose input
    is the inner activation that the paper scales.

    Shapes: W (out, in); l (out), or (in) at a feed-forward site; l = 1, so y is the base's own at step 0, bit for bit.
    Trains: out numbers per site, in at a feed-forward site. Kept of a token beside: what l multiplies, once.
    Source: Liu et al., "Few-Shot Parameter-Efficient Fine-Tuning is Better and Cheaper than In-Context Learning",
    NeurIPS 2022, arXiv 2205.05638; as in the authors' code (r-three/t-few) and PEFT's layer, whose bias is scaled too.
    Departures: none in the function. T-Few's losses beside the language model's (unlikelihood, length-normalised
    choices) are no part of the adapter.
    Advice: a learning rate of 1e-3 to 3e-3 and no weight decay, which would pull l to 0 and not to 1. In a gated block
    l on the input of down_proj is l on the output of up_proj.
    """

    aliases = {
        "t_few": "adapter: ia3",
    }
    provides = {"adapters", "mergeable"}
    roles = {"l": "magnitude"}
    peft = PeftForm(
        ia3_form_keys,
        ia3_form_tensors,
        names={"l": "ia3_l"},
        read=ia3_form_settings,
        taken=ia3_form_taken,
        lacks=("bias",),
    )

    config: Config

    class Config(AdapterConfig):
        targets: str | list[str] = Field(
            ["k_proj", "v_proj", "down_proj"],
            description="`all-linear`, or patterns matched against the end of module names",
        )
        feedforward: list[str] | None = Field(
            None,
            description="patterns of sites whose inputs are scaled; by default the last maps of feed-forward blocks",
        )

        def site_patterns(self) -> dict[str, list[str]]:
            """The patterns of `feedforward`, where it is written."""
            return {} if self.feedforward is None else {"feedforward": self.feedforward}

        def deciding(self, name: str) -> dict[str, Json]:
            """The patterns that say the same of this site alone."""
            return {"feedforward": [name] if self.scales_inputs(name) else []}

        def scales_inputs(self, name: str) -> bool:
            """Whether the vector of the site called `name` multiplies its inputs."""
            patterns = LAST_MAPS if self.feedforward is None else self.feedforward
            return any(fnmatch.fnmatchcase(f".{name}", f"*.{pattern}") for pattern in patterns)

    def __init__(self, config: Config, site: Site) -> None:
        super().__init__(config, site)
        self.on_inputs = config.scales_inputs(site.name)
        self.l = nn.Parameter(torch.ones(self.count(config, site)))

    def reset(self) -> None:
        nn.init.ones_(self.l)

    def inputs(self) -> Tensor | None:
        return self.at_use(self.l) if self.on_inputs else None

    def outputs(self, y: Tensor) -> Tensor:
        return y if self.on_inputs else scaled(y, self.at_use(self.l))

    @staticmethod
    def count(config: IA3.Config, site: Site) -> int:
        return site.in_features if config.scales_inputs(site.name) else site.out_features
