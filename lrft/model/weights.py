"""The weights that a run changes, one linear layer at a time: before any training, and what was added since."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from lrft.core.adapted import Adapted, adapted
from lrft.core.analysis import Change
from lrft.core.frozen import FrozenLinear
from lrft.model.causal_lm import CausalLM
from lrft.model.sites import is_transposed, linear_sites


class ModelWeights:
    """`lrft.core.analysis.Weights` of a model that is being trained.

    Args:
        model: with its adapters attached.
        reload: loads the base model as its files have it, anew; called once for each pass over the originals, so
            that nothing is held between.
    """

    def __init__(self, model: CausalLM, reload: Callable[[], CausalLM]) -> None:
        self.model, self.reload = model, reload

    def names(self) -> list[str]:
        """Paths of the layers, in the order of `changes`."""
        return [name for name, _ in self.adapted()] + _training(self.model)

    @torch.no_grad()
    def changes(self) -> Iterator[Change]:
        """Adapted layers whose adapter is a change of the weight, then layers whose own weight trains."""
        for site, module in self.adapted():
            yield Change(site, module.pretrained_weight(), module.change())
        yield from self.trained()

    def adapted(self) -> Iterator[tuple[str, Adapted]]:
        """Path and wrapper of the layers whose adapter is a change of the weight."""
        for site, module in adapted(self.model.hf):
            if "mergeable" in module.adapter.provides and isinstance(module.base, FrozenLinear):
                yield site, module

    @torch.no_grad()
    def trained(self) -> Iterator[Change]:
        """Layers whose own weight trains; the base is loaded anew where there are any."""
        names = _training(self.model)
        if not names:
            return
        for name, before in _dense(self.reload(), names):
            now = _weight(self.model, name)
            yield Change(name, before.to(now.device), now - before.to(now.device))

    @torch.no_grad()
    def originals(self) -> Iterator[tuple[str, Tensor]]:
        """The same layers, as the model's files have them."""
        return _dense(self.reload(), self.names())


def _training(model: CausalLM) -> list[str]:
    """Linear layers whose own weight trains."""
    return [
        name
        for name in linear_sites(model)
        if not isinstance(model.hf.get_submodule(name), FrozenLinear)
        and model.hf.get_submodule(name).get_parameter("weight").requires_grad
    ]


def _dense(model: CausalLM, names: list[str]) -> Iterator[tuple[str, Tensor]]:
    for name in names:
        yield name, _weight(model, name)


def _weight(model: CausalLM, name: str) -> Tensor:
    layer = model.hf.get_submodule(name)
    weight = layer.get_parameter("weight").detach().float()
    return weight.mT if is_transposed(layer) else weight
