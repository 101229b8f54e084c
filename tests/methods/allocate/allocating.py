"""Adapters on their own and a run around them, for allocators that are fed gradients step by step."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from lrft.core.adapted import Adapted
from lrft.core.params import ParamInfo, Site
from lrft.core.run import Run
from lrft.registry.axes import ADAPTERS, QUANTIZERS

SHAPES = [(7, 5), (4, 9), (6, 6)]  # in, out


def make_run(method: Any, total: int, adapter: str = "svd_lora", rank: int = 6, **settings: Any) -> Run:
    """A run of `total` steps over three adapted sites a, b and c, with `method` as its callback."""
    torch.manual_seed(0)
    model = nn.ModuleDict()
    config = ADAPTERS.declared(adapter).config(method=adapter, rank=rank, **settings)
    plain = QUANTIZERS.declared("none").config(method="none")
    for name, (width, out) in zip("abc", SHAPES, strict=True):
        base = QUANTIZERS.get("none")(torch.randn(out, width), None, plain)
        model[name] = Adapted(base, ADAPTERS.get(adapter)(config, Site(name, width, out)))
    infos = [
        ParamInfo(f"{site}.{key}", parameter, module.adapter.roles[key], site)
        for site, module in model.items()
        for key, parameter in module.adapter.named_parameters()
    ]
    run = Run(model, infos, torch.optim.SGD([i.param for i in infos], lr=0.1), None, total)
    run.callbacks = [method]
    return run


def draw_gradients(run: Run, seed: int, scale: float = 1.0) -> None:
    """The same gradient for every parameter, whichever run it belongs to."""
    generator = torch.Generator().manual_seed(seed)
    for info in run.parameters:
        info.param.grad = scale * torch.randn(info.param.shape, generator=generator)


def gates(run: Run) -> dict[str, torch.Tensor]:
    """Site -> E."""
    return {site: module.adapter.E.detach() for site, module in run.adapted()}
