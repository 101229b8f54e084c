"""The bare base model as a reference."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn

from lrft.core.adapted import adapters_off
from lrft.core.run import LanguageModel


@contextmanager
def base_alone(model: LanguageModel) -> Iterator[None]:
    """The bare base model without dropout; every module's own mode is put back afterwards."""
    assert isinstance(model, nn.Module), "adapters sit in a module"
    training: list[nn.Module] = [module for module in model.modules() if module.training]
    for module in training:
        module.training = False
    try:
        with adapters_off(model):
            yield
    finally:
        for module in training:
            module.training = True
