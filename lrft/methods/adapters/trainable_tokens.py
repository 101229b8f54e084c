"""Trainable tokens: chosen rows of the input embedding train, and nothing else."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from lrft.core.adapter import PeftForm
from lrft.core.block import OfParameters
from lrft.core.params import Site
from lrft.core.rows import embedded_with, embedding_scale
from lrft.registry.axes import ADAPTERS
from lrft.registry.config import AdapterConfig, Annotated, Field
from lrft.registry.json import Json


def tokens_form_keys(config: TrainableTokens.Config, with_start: bool) -> dict[str, Json]:
    """PEFT's keys of the method."""
    return {"peft_type": "TRAINABLE_TOKENS", "token_indices": sorted(config.ids)}


@ADAPTERS.register
class TrainableTokens(OfParameters):
    """Rows of the input embedding that stand for themselves and train; all others stay as they are.

        E'(t) = R_j where t is the j-th of `ids`, else E(t)
        a head that is tied to the embedding scores those tokens by R_j too; one that has its own rows keeps them

    with E(t) the embedding of token t, any factor the model multiplies it by included.

    Shapes: R (k, hidden), k the number of `ids`; at step 0 the embedding's own rows, so nothing changes.
    Trains: k hidden numbers, float32, saved as rows, at one site: the input embedding.
    Source: PEFT's TrainableTokens, checked on the same numbers; there is no paper.
    Departures: none. A row replaces the embedding's own, as in PEFT, and is no difference to it.
    Advice: `ids` are those of the tokenizer (`tokenizer.convert_tokens_to_ids`). For tokens that the model does not
    have yet, `model.add_tokens` makes and trains rows beside any adapter. PEFT's own run has two ids and a learning
    rate of 0.2. It merges by writing the rows; plain LoRA cannot say it.
    """

    aliases = {
        "token_embeddings": "adapter: {method: trainable_tokens, ids: [1, 2]}",
    }
    site_kinds = ("embedding",)
    provides = {"adapters", "mergeable", "block_parameters", "unfolded"}
    roles = {"rows": "embedding"}
    peft = PeftForm(
        tokens_form_keys,
        names={"rows": "trainable_tokens_delta"},
        lacks=("bias", "fan_in_fan_out", "modules_to_save"),
    )

    config: Config

    class Config(AdapterConfig):
        ids: list[Annotated[int, Field(ge=0)]] = Field(
            min_length=1, description="ids of the tokens whose rows of the input embedding train"
        )

    places: Tensor

    def __init__(self, config: Config, site: Site) -> None:
        super().__init__(config, site)
        ids = sorted(config.ids)
        if ids[-1] >= site.in_features:
            raise ValueError(
                f"ids has {ids[-1]}, and the embedding has rows 0 to {site.in_features - 1}; leave it out"
            )
        if twice := [one for one, other in pairwise(ids) if one == other]:
            raise ValueError(f"ids has {twice[0]} twice; leave one out")
        self.register_buffer("places", torch.tensor(ids), persistent=False)
        self.rows = nn.Parameter(torch.zeros(len(ids), site.out_features))
        self.scale = 1.0

    @torch.no_grad()
    def fit(self, block: nn.Module) -> None:
        """Begin with the embedding's own rows.

        Raises:
            ValueError: the embedding trains itself, or reads its rows in a way that is not known.
        """
        weight = block.get_parameter("weight")
        if weight.requires_grad:
            raise ValueError("its weight trains itself; leave it out of trainable, or choose another adapter")
        self.scale = embedding_scale(block)
        if weight.is_meta:
            return
        places = self.places.to(weight.device)
        self.rows.copy_(weight[places])
        given = block(places[None])
        if not torch.allclose(self(places[None], block).float(), given.float(), rtol=1e-2, atol=1e-6):
            raise ValueError("it reads its rows in a way that is not known; choose another adapter")

    def forward(self, ids: Tensor, base: nn.Module) -> Tensor:
        """(B, L) token ids -> (B, L, hidden)."""
        return embedded_with(self.rows, self.places, ids, base(ids), self.scale)

    def vocabulary_rows(self) -> tuple[Tensor, Tensor]:
        return self.rows, self.places

    def merged_parameters(self, own: Any) -> dict[str, Tensor]:
        weight: Tensor = own["weight"]
        places = self.places.to(weight.device)
        return {"weight": weight.index_copy(0, places, self.rows.detach().to(weight.device))}

    @staticmethod
    def count(config: TrainableTokens.Config, site: Site) -> int:
        return len(config.ids) * site.out_features
