"""What a finished run is compared with: its base as plain transformers has it, and the logits of a few tokens."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from lrft.core.batch import Batch
from lrft.model.causal_lm import CausalLM
from lrft.model.load import load_model
from lrft.model.trained import frozen_layers
from lrft.recipe.schema import Recipe


def pretrained(recipe: Recipe, model: CausalLM) -> Any:
    """The dense model whose weights are what training started from, as its base stores them."""
    if recipe.model.head is not None:  # of a model that is not quantized
        from transformers import AutoModelForSequenceClassification

        labels = len(recipe.model.head.labels)
        return AutoModelForSequenceClassification.from_pretrained(recipe.model.name, num_labels=labels)
    dense = load_model(recipe.model)
    weights = dict(dense.hf.named_parameters())
    with torch.no_grad():
        for name, base, wrapper in frozen_layers(model):
            weight = base.weight() if wrapper is None else wrapper.pretrained_weight()
            weights[f"{name}.weight"].copy_(weight.mT if name in model.transposed else weight)
    dense.hf.set_attn_implementation("eager")
    return dense.hf


@torch.no_grad()
def logits(model: CausalLM, ids: Tensor) -> Tensor:
    """One row of tokens through lrft's model; the scores of the whole row where it gives them."""
    none = ids.new_empty(0)
    if model.labels:
        last = torch.tensor([ids.shape[1] - 1])
        whole = Batch(ids, torch.arange(ids.shape[1])[None], ((0, 0, ids.shape[1]),), last, last)
        return model.scores(whole)
    return model(Batch(ids, torch.arange(ids.shape[1])[None], ((0, 0, ids.shape[1]),), none, none))
