"""Parameters of four shapes that an optimizer moves along drawn gradients, and what every projecting one is asked."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise

import torch
from safetensors.torch import load, save

from lrft.core.params import ParamInfo
from lrft.training.flatten import flatten, unflatten

SHAPES = {"tall": (24, 16), "wide": (16, 24), "square": (16, 16), "norm": (16,)}
Optimizer = torch.optim.Optimizer


def parameters(
    dtype: torch.dtype = torch.float32, shapes: Mapping[str, tuple[int, ...]] = SHAPES
) -> list[ParamInfo]:
    generator = torch.Generator().manual_seed(0)
    return [
        ParamInfo(
            name,
            torch.nn.Parameter(torch.randn(shape, generator=generator).to(dtype)),
            "matrix" if len(shape) == 2 else "vector",
        )
        for name, shape in shapes.items()
    ]


def give_gradient(param: torch.Tensor, index: int, t: int, growth: float) -> None:
    """Noise of the step, which grows by `growth` a step, and a pull to zero."""
    noise = torch.randn(param.shape, generator=torch.Generator().manual_seed(100 * t + index))
    param.grad = (noise * (1 + growth * t) + 0.1 * param.detach().float()).to(param.dtype)


def step(optimizer: Optimizer, params: Sequence[torch.Tensor], t: int, growth: float = 1.0) -> None:
    for index, param in enumerate(params):
        give_gradient(param, index, t, growth)
    optimizer.step()


def resumed(
    optimizer: Optimizer,
    params: Sequence[torch.Tensor],
    twins: Sequence[ParamInfo],
    build: Callable[[Sequence[ParamInfo]], Optimizer],
    growth: float = 1.0,
) -> Optimizer:
    """One of `twins` that takes a state after six steps through what a file holds; both then take five more."""
    tensors, plain = flatten(optimizer.state_dict())
    for twin, param in zip(twins, params, strict=True):
        twin.param.data.copy_(param.data)
    other = build(twins)
    other.load_state_dict(unflatten(load(save(tensors)), json.loads(json.dumps(plain))))
    for t in range(6, 11):
        step(optimizer, params, t, growth)
        step(other, [twin.param for twin in twins], t, growth)
    return other


def moved_apart(build: Callable[[Sequence[ParamInfo]], Optimizer]) -> list[torch.Tensor]:
    """The parameters after ten steps of an optimizer for each."""
    infos = parameters()
    single = [build([info]) for info in infos]
    for t in range(10):
        for index, (info, own) in enumerate(zip(infos, single, strict=True)):
            give_gradient(info.param, index, t, 1.0)
            own.step()
    return [info.param for info in infos]


def growth_of_norms(optimizer: Optimizer, infos: Sequence[ParamInfo]) -> torch.Tensor:
    """By how much what is limited grows a step, of the three matrices, over nine steps."""
    norms = []
    for t in range(9):
        step(optimizer, [info.param for info in infos], t)
        norms.append(torch.stack([optimizer.state[info.param]["norm"] for info in infos[:3]]))
    return torch.stack([after / before for before, after in pairwise(norms)])
