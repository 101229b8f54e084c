"""The score head: a linear map from the last hidden state of a text to its labels, which trains from a random start."""

from __future__ import annotations

import torch
from torch import nn

from lrft.model.causal_lm import SCORE, CausalLM
from lrft.recipe.inside_sections import ScoreHead
from lrft.registry.errors import RecipeError

STD = 0.02  # where a configuration says nothing of how weights are drawn


def give_score_head(model: CausalLM, section: ScoreHead | None, seed: int) -> None:
    """Put a score head on the model, drawn from the seed alone; nothing where the section is None.

    Raises:
        RecipeError: the model has something of that name already.
    """
    if section is None or model.labels:
        return
    if hasattr(model.hf, SCORE):
        raise RecipeError(f"{type(model.hf).__name__} has a part called {SCORE} already", "model.head")
    config = model.hf.config.get_text_config()
    head = nn.Linear(config.hidden_size, len(section.labels), bias=False, device="meta", dtype=torch.float32)
    if model.device.type != "meta":
        generator = torch.Generator().manual_seed(seed)
        std = float(getattr(config, "initializer_range", None) or STD)
        drawn = std * torch.randn(head.weight.shape, generator=generator)
        head.weight = nn.Parameter(drawn.to(model.device))
    model.hf.add_module(SCORE, head)
    model.labels = tuple(section.labels)


def take_score_head(model: CausalLM) -> None:
    """Take the score head off again, if there is one."""
    if model.labels:
        delattr(model.hf, SCORE)
        model.labels = ()


def is_score_head(name: str) -> bool:
    """Whether a parameter of this name is the score head's."""
    return name == f"{SCORE}.weight"
