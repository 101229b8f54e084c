"""What a recipe's `prune` does to the base before adapters are put on it, and to what was trained on a smaller one."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from lrft.core.stages import Plan
from lrft.core.units import CUT, HIDDEN, WHOLE, Pruned, Pruner, Units
from lrft.model.builder import dense
from lrft.model.causal_lm import CausalLM
from lrft.model.sites import linear_sites
from lrft.model.units import cut, find_units, hide, saved_stays
from lrft.recipe.schema import Recipe
from lrft.registry.axes import PRUNERS
from lrft.registry.errors import RecipeError


def prepare_units(recipe: Recipe, model: CausalLM, saved: dict[str, Tensor] | None, trains: bool) -> None:
    """Find the units of a model that a recipe prunes, and cut off those that do not train.

    Args:
        saved: tensors of a checkpoint, which say what was kept.
        trains: it will be trained; else an adapter that was trained on less is put on the whole model.

    Raises:
        RecipeError: the model holds its units in a way that is not known.
    """
    if recipe.prune is None or model.pruned is not None:
        return
    pruner = PRUNERS.get(recipe.prune.method)(recipe.prune)
    assert isinstance(pruner, Pruner), "the axis holds pruners"
    if not {"hidden_units", "cut_units"} & pruner.provides:
        return
    units = find_units(model)
    stays = {one.name: torch.ones(one.count, dtype=torch.uint8) for one in units}
    state = HIDDEN
    if "cut_units" in pruner.provides:
        state = WHOLE if recipe.adapter is not None and not trains else CUT
        stays |= _chosen(pruner, model, units, recipe.train.seed) if saved is None else {}
    stays |= {name: stay.cpu() for name, stay in saved_stays(saved or {}).items()}
    model.pruned = Pruned({one.name: one for one in units}, stays, state)
    if state == CUT:
        _cut_base(pruner, model)


def _chosen(pruner: Pruner, model: CausalLM, units: list[Units], seed: int) -> dict[str, Tensor]:
    if next(model.hf.parameters()).is_meta:
        return pruner.foresee(units)
    return pruner.choose(units, lambda name: dense(model.hf.get_submodule(name))[0], seed)


@torch.no_grad()
def _cut_base(pruner: Pruner, model: CausalLM) -> None:
    assert model.pruned is not None
    if model.packed:
        message = (
            "cuts dense layers, and the checkpoint holds them in few bits; name the unquantized checkpoint"
        )
        raise RecipeError(message, "prune.method")
    cut(model.hf, model.pruned)
    if next(model.hf.parameters()).is_meta or (given := pruner.weights()) is None:
        return
    held = dict(model.hf.named_parameters())
    if strange := sorted(name for name in held if name not in given or given[name].shape != held[name].shape):
        raise RecipeError(
            f"the weights it names do not hold {strange[0]} as {tuple(held[strange[0]].shape)} ({len(strange)} of "
            f"{len(held)} tensors); "
            "name what `lrft merge` made of a run with the same model.name",
            "prune",
        )
    for name, parameter in held.items():
        parameter.copy_(given[name])


def hide_units(model: CausalLM) -> None:
    """Hide what does not stay of a model that is put together, where units are hidden."""
    if model.pruned is not None and model.pruned.state == HIDDEN:
        hide(model, model.pruned)


def on_whole_sites(model: CausalLM, plan: Plan) -> Plan:
    """The plan of a run, on the sites of the model as it is: whole again where units had been cut off."""
    if model.pruned is None or model.pruned.state != WHOLE:
        return plan
    sites = linear_sites(model)
    return {name: replace(entry, site=sites.get(name, entry.site)) for name, entry in plan.items()}
