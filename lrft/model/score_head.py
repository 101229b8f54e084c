"""The score head: a linear map from the last hidden state of a text to its labels, which trains from a random start."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

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


def lacks_classifier(model: CausalLM) -> bool:
    """Whether it scores texts, and transformers has no sequence classifier with its body and a head called as ours."""
    if not model.labels:
        return False
    from transformers import AutoModelForSequenceClassification

    kind: Any = type(model.hf.config)
    if kind not in AutoModelForSequenceClassification._model_mapping:
        return True
    found = _empty(copy.deepcopy(model.hf.config))
    head = dict(found.named_children()).get(SCORE)
    same = head is not None and [name for name, _ in head.named_parameters()] == ["weight"]
    return not same or type(found.base_model) is not type(model.body)


def classifier(dense: CausalLM, pad_id: int) -> nn.Module:
    """The sequence classifier of transformers with the body, head and labels of `dense`, which bears no adapter.

    Args:
        pad_id: of the tokenizer; the classifier takes the last token that is another one.
    """
    config: Any = copy.deepcopy(dense.hf.config)
    config.id2label = dict(enumerate(dense.labels))
    config.label2id = {label: number for number, label in enumerate(dense.labels)}
    config.problem_type = "regression" if len(dense.labels) == 1 else "single_label_classification"
    config.pad_token_id = pad_id
    made: nn.Module = _empty(config)
    body: Any = made.base_model
    body.load_state_dict(dense.body.state_dict(), assign=True)
    made.get_submodule(SCORE).load_state_dict(dense.hf.get_submodule(SCORE).state_dict(), assign=True)
    return made


def _empty(config: Any) -> Any:
    from transformers import AutoModelForSequenceClassification

    with torch.device("meta"):
        return AutoModelForSequenceClassification.from_config(config)


@torch.no_grad()
def scores_on_disk(folder: Path, texts: Sequence[Sequence[int]], dtype: torch.dtype) -> Tensor:
    """What the classifier of a folder gives each text, (texts, labels) float32, by transformers alone.

    Every text has one token of padding after it, so that a text whose own last token is taken for padding shows.
    """
    from transformers import AutoModelForSequenceClassification

    model: Any = AutoModelForSequenceClassification.from_pretrained(folder, dtype=dtype).eval()
    found = []
    for ids in texts:
        padded = torch.tensor([[*ids, model.config.pad_token_id]])
        mask = torch.ones_like(padded)
        mask[0, -1] = 0
        found.append(model(input_ids=padded, attention_mask=mask).logits.float())
    return torch.cat(found)
