"""PEFT's own layer beside a site of ours."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from lrft.core.adapted import Adapted


@pytest.fixture
def in_peft() -> Callable[[Adapted, Tensor, str], nn.Module]:
    """`in_peft(site, weight, "LoraConfig")` -> PEFT's model of one layer.

    Its settings are those that the site's form writes. Skips where PEFT is not installed.
    """
    peft = pytest.importorskip("peft")

    def make(site: Adapted, weight: Tensor, config: str) -> nn.Module:
        keys = dict(site.adapter.peft.keys(site.adapter.config, False))
        keys.pop("peft_type")
        model = nn.Sequential(nn.Linear(weight.shape[1], weight.shape[0], bias=False))
        with torch.no_grad():
            model[0].weight.copy_(weight)
        return peft.get_peft_model(model, getattr(peft, config)(target_modules=["0"], **keys))

    return make
