"""`lrft merge --add`: what other adapters of the same base learnt, added to what a run's did."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import nn

from lrft.build.earlier import Earlier, read_earlier
from lrft.build.earlier_base import check_same_base
from lrft.core.adapted import Adapted, adapted
from lrft.core.less import changed
from lrft.core.params import Site
from lrft.model.causal_lm import CausalLM
from lrft.model.take_over import Trained
from lrft.model.trained import frozen_layers
from lrft.recipe.schema import Recipe
from lrft.registry.errors import NotMergeable, RecipeError, UsageError


def add_all(recipe: Recipe, model: CausalLM, others: Sequence[Path | str]) -> None:
    """Let the model of a run compute with the changes of other runs or PEFT folders too, in any order the same.

    Raises:
        UsageError: one cannot be read, or is of another base.
        NotMergeable: a change depends on the weight it is put on, so that it does not add up.
    """
    if others and recipe.adapter is None:
        raise UsageError(
            "--add: the run has no adapter, and its weights are the sum already; name a run that has one"
        )
    for other in others:
        sites = {
            name: Site(name, base.in_features, base.out_features, has_bias=base.bias is not None)
            for name, base, _ in frozen_layers(model)
        }
        earlier = _read(recipe, other, sites)
        check_same_base(earlier, model, f"--add {other}", recipe.model.name)
        add(model, earlier.given, f"--add {other}")


@torch.no_grad()
def add(model: CausalLM, given: Mapping[str, Trained], what: str) -> None:
    """Add the change of every given site to the model's layer of that path, adapted or not.

    Raises:
        UsageError: there is no such layer.
        NotMergeable: a change depends on the weight it is put on.
    """
    layers = {name: wrapper or base for name, base, wrapper in frozen_layers(model)}
    adapters = [module.adapter for _, module in adapted(model.hf)] + [one.adapter for one in given.values()]
    for adapter in adapters:
        if "linear_delta" not in adapter.provides:
            raise NotMergeable(
                f"{what}: the change of a {adapter.name} depends on the weight, so it does not add up with another"
            )
    for name, trained in given.items():
        if name not in layers:
            raise UsageError(f"{what}: changes {name}, which is no frozen layer of this run")
        module = layers[name]
        if not isinstance(module, Adapted):
            module = _wrapped(model.hf, name, trained, module)
        weight = module.base.original.weight().float()
        change = trained.dense(weight.cpu()).to(weight.device)
        module.base = changed(module.base)
        module.base.add(change)


def _read(recipe: Recipe, other: Path | str, sites: Mapping[str, Site]) -> Earlier:
    section = recipe.model.model_copy(update={"adapter": str(other)})
    try:
        return read_earlier(recipe.model_copy(update={"model": section}), sites)
    except RecipeError as error:
        raise UsageError(f"--add {other}: {error.problems[0].message}") from error
    except UsageError as error:
        raise UsageError(f"--add: {error}") from error


def _wrapped(hf: nn.Module, name: str, trained: Trained, base: nn.Module) -> Adapted:
    """A site whose adapter changes nothing, at a layer that had none."""
    part = copy.deepcopy(trained.adapter).to(next(base.buffers()).device)
    part.reset()
    made = Adapted(base, part)  # type: ignore[arg-type]
    parent, _, leaf = name.rpartition(".")
    setattr(hf.get_submodule(parent), leaf, made)
    return made
