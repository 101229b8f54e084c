"""The bare base model as a reference."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

import torch
from torch import Tensor, nn

from lrft.core.adapted import adapters_off
from lrft.core.batch import Batch
from lrft.core.run import LanguageModel, Run
from lrft.registry.errors import RecipeError


@contextmanager
def base_alone(model: LanguageModel) -> Iterator[None]:
    """The bare base model without dropout; every module's own mode is put back afterwards."""
    assert isinstance(model, nn.Module), "adapters sit in a module"
    with undropped(model), adapters_off(model):
        yield


@contextmanager
def undropped(model: LanguageModel) -> Iterator[None]:
    """The model without dropout; every module's own mode is put back afterwards."""
    assert isinstance(model, nn.Module), "dropout sits in a module"
    training: list[nn.Module] = [module for module in model.modules() if module.training]
    for module in training:
        module.training = False
    try:
        yield
    finally:
        for module in training:
            module.training = True


def check_reference(run: Run | None, name: str) -> None:
    """Refuse a base that trains, which is no reference."""
    if run is not None and any(not info.site for info in run.parameters):
        raise RecipeError(
            f"{name} measures against the base model, which trains here as well; train adapters alone",
            "objective.method",
        )


def head_alone(model: LanguageModel) -> AbstractContextManager[None]:
    """The head without an adapter and new rows of its own."""
    assert isinstance(model, nn.Module), "adapters sit in a module"
    plain = model.head.is_frozen_dense and model.head.rows is None
    return nullcontext() if plain else adapters_off(model)


@torch.no_grad()
def states_of(teacher: LanguageModel, model: LanguageModel, batch: Batch) -> Tensor:
    """The teacher's hidden states at the supervised positions, (N, d); of a model's own base where both are one."""
    with base_alone(model) if teacher is model else nullcontext():
        return batch.supervised_rows(teacher.hidden(batch))


@torch.no_grad()
def logits_of(teacher: LanguageModel, model: LanguageModel, hidden: Tensor) -> Tensor:
    """Its logits of these states, (N, V) float32."""
    with head_alone(model) if teacher is model else nullcontext():
        return teacher.head.logits(hidden).float()
