"""A tiny model with what a recipe prunes, and what a folder that was written of one computes in transformers."""

from __future__ import annotations

import torch
from torch import nn
from transformers import AutoModelForCausalLM

from lrft.build.adapt import adapt
from lrft.core.batch import Batch
from lrft.recipe.schema import Recipe

IDS = torch.randint(3, 400, (2, 9), generator=torch.Generator().manual_seed(0))


def recipe_of(folder, prune, adapter="lora", trainable="adapter", **more):
    written = {
        "model": {"name": str(folder), "dtype": "float32"},
        "adapter": adapter,
        "trainable": trainable,
        "prune": prune,
        "data": {"train": "x.jsonl", "format": "text"},
    }
    return Recipe.model_validate({**written, **more})


def made(recipe, seed=1, **given):
    """The model with adapters that are no longer zero."""
    model = adapt(recipe, **given).model
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        for name, parameter in model.named_parameters():
            if name.endswith("adapter.B"):
                nn.init.normal_(parameter, std=0.1)
    return model.eval()


def batch():
    """Two rows, of a document each."""
    none = torch.empty(0, dtype=torch.long)
    return Batch(IDS, torch.arange(9).expand(2, 9), ((0, 0, 9), (1, 0, 9)), none, none)


def logits(model):
    """Of a run's model, or of transformers' own."""
    if hasattr(model, "hf"):
        return model(batch()).detach()
    return model(input_ids=IDS, use_cache=False).logits.detach()


def in_transformers(folder, **settings):
    return AutoModelForCausalLM.from_pretrained(folder, **settings).eval()
