"""Prompt tuning: trained embeddings before the text, and nothing else."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor, nn

from lrft.core.adapter import Adapter, PeftForm
from lrft.core.params import Site
from lrft.core.virtual import places
from lrft.registry.axes import ADAPTERS
from lrft.registry.config import AdapterConfig, Field, Literal
from lrft.registry.json import Json


class TextConfig(Protocol):
    """The settings of a model's text part."""

    num_attention_heads: int
    num_hidden_layers: int


class ModelConfig(Protocol):
    """The settings of a model."""

    def get_text_config(self) -> TextConfig: ...


class Model(Protocol):
    """The model of transformers."""

    config: ModelConfig


def prompt_form(adapters: Sequence[PromptTuning], hf: Model) -> tuple[dict[str, Tensor], dict[str, Json]]:
    """PEFT's one tensor, and its keys."""
    (adapter,) = adapters
    config = hf.config.get_text_config()
    keys: dict[str, Json] = {
        "peft_type": "PROMPT_TUNING",
        "num_virtual_tokens": adapter.config.tokens,
        "token_dim": adapter.site.out_features,
        "num_transformer_submodules": 1,
        "num_attention_heads": config.num_attention_heads,
        "num_layers": config.num_hidden_layers,
        "prompt_tuning_init": "RANDOM",
    }
    return {"prompt_embeddings": adapter.prompt.detach()}, keys


@ADAPTERS.register
class PromptTuning(Adapter):
    """A few trained embeddings that stand before every text; all weights of the model stay as they are.

        h_0 = [P_1, ..., P_n, E(x_1), E(x_2), ...]

    with n = `tokens`, E the model's embedding and P what trains. The P take the first n positions, later tokens attend
    to them, and nothing is predicted from them. In packed rows every document has them before it.

    Shapes: P (n, hidden), at step 0 the embeddings of n random tokens (`start: vocab`) or ~ N(0, 1) (`start: random`),
    so the model is not the pretrained one at step 0.
    Trains: n hidden numbers, float32, at one site: the input embedding.
    Source: Lester et al., "The Power of Scale for Parameter-Efficient Prompt Tuning", EMNLP 2021, arXiv 2104.08691;
    logits checked against PEFT's.
    Departures: `vocab` draws from the whole vocabulary, the paper from its 5,000 most common tokens; starting from the
    names of classes or a text is not offered.
    Advice: the n positions come on top of `train.max_length`. It cannot be merged, being no change of a weight.
    """

    aliases = {
        "soft_prompt p_tuning_lester": "adapter: prompt_tuning",
    }
    site_kinds = ("embedding",)
    provides = {"adapters", "moved_start"}
    requires = {"eager"}
    roles = {"prompt": "embedding"}
    peft = PeftForm(together=prompt_form)

    config: Config

    class Config(AdapterConfig):
        tokens: int = Field(20, gt=0, description="virtual tokens before every text")
        start: Literal["vocab", "random"] = Field(
            "vocab", description="embeddings of random tokens, or numbers from N(0, 1)"
        )

    def __init__(self, config: Config, site: Site) -> None:
        super().__init__(config, site)
        self.prompt = nn.Parameter(torch.empty(config.tokens, site.out_features))
        nn.init.normal_(self.prompt)

    @torch.no_grad()
    def fit(self, block: nn.Module) -> None:
        weight = block.get_parameter("weight")
        if self.config.start == "vocab" and not weight.is_meta:
            rows = torch.randint(len(weight), (self.config.tokens,))
            self.prompt.copy_(weight[rows.to(weight.device)])

    def forward(self, ids: Tensor, base: nn.Module) -> Tensor:
        """(B, L) token ids -> (B, L, hidden)."""
        embedded: Tensor = base(ids.clamp_min(0))
        found = places(embedded)
        return (
            embedded if found is None else torch.where(found[0], self.prompt[found[1]].to(embedded), embedded)
        )

    @staticmethod
    def virtual_tokens(config: Config) -> int:
        return int(config.tokens)

    @staticmethod
    def count(config: Config, site: Site) -> int:
        return int(config.tokens * site.out_features)
