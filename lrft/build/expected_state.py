"""What an optimizer keeps of the parameters of a run, known before the state of a checkpoint is believed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from lrft.build.optimizing import build_optimizer
from lrft.core.optimizer import contract_of
from lrft.core.params import ParamInfo
from lrft.recipe.schema import Recipe
from lrft.training.fitting import Expected
from lrft.training.flatten import flatten
from lrft.training.updates import PerLayer


def expected_state(recipe: Recipe, infos: Sequence[ParamInfo]) -> Expected:
    """The state after one step of the very optimizer that the run has, on tensors without storage.

    Of one that computes its own losses, and of a federation's, whose steps are rounds, nothing is known beforehand.
    """
    if recipe.federate is not None:
        return Expected({}, {})
    bare = _without_storage(infos)
    optimizer = build_optimizer(recipe, bare)
    if contract_of(optimizer).calls_closure:
        return Expected({}, {})
    for info in bare:
        info.param.grad = torch.empty_like(info.param)
    for one in optimizer.parts if isinstance(optimizer, PerLayer) else [optimizer]:
        one.step()
    tensors, values = flatten(optimizer.state_dict())
    return Expected(tensors, values)


def _without_storage(infos: Sequence[ParamInfo]) -> list[ParamInfo]:
    """The same parameters, each the other factor of the one that it was of."""
    bare = {id(info.param): nn.Parameter(torch.empty_like(info.param, device="meta")) for info in infos}

    def partner(of: Tensor | None) -> Tensor | None:
        return None if of is None else bare.get(id(of), torch.empty_like(of, device="meta"))

    return [replace(i, param=bare[id(i.param)], partner=partner(i.partner)) for i in infos]
