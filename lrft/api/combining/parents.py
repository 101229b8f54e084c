"""The adapters that are combined: read from runs and PEFT folders, as changes of the layers of one base."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from lrft.build.decide import quantizer
from lrft.build.earlier import Earlier, read_earlier
from lrft.build.earlier_base import check_same_base
from lrft.core.adapter import LowRank
from lrft.core.combine import Part
from lrft.core.params import Site
from lrft.model.builder import dense
from lrft.model.causal_lm import CausalLM
from lrft.model.sites import linear_sites
from lrft.model.take_over import Trained
from lrft.recipe.schema import Recipe
from lrft.registry.axes import QUANTIZERS
from lrft.registry.errors import NotMergeable, RecipeError, UsageError
from lrft.registry.json import Json
from lrft.training.folder import RECIPE, RUN, places
from lrft.training.relied import own_recipe
from lrft.training.within_run import within_run


@dataclass(frozen=True)
class Parent:
    """One adapter.

    Attributes:
        name: the folder's, made different from the others'.
        parts: layer -> what it changes there.
        record: where it is from, with the sha256 of its tensors.
        told: what a reader has to know of it.
    """

    name: str
    parts: dict[str, Part]
    record: dict[str, Json]
    told: list[str] = field(default_factory=list)


def recipe_of(paths: Sequence[Path | str]) -> Recipe | None:
    """The recipe of the first of these that is a run; None where none is."""
    for path in paths:
        if (run := run_of(path)) is not None:
            return own_recipe(run).recipe
    return None


@torch.no_grad()
def read_parents(paths: Sequence[Path | str], recipe: Recipe, base: CausalLM) -> list[Parent]:
    """Every adapter as changes of the layers of `base`, a dense model.

    Args:
        recipe: says in what the base is stored, which changes that depend on the weight are computed on.

    Raises:
        UsageError: one cannot be read, or is of another base.
        NotMergeable: what it trained is no change of the weights of layers.
    """
    sites = linear_sites(base)
    weight_of = _weights(recipe, base)
    return [_read(path, recipe, base, sites, weight_of, place) for place, path in enumerate(paths, 1)]


def aligned(parents: Sequence[Parent], sites: Mapping[str, Site]) -> dict[str, list[Part]]:
    """Layer -> the part of every parent, in the order of the model; one that changes nothing there has no rank."""
    found: dict[str, list[Part]] = {}
    for name, site in sites.items():
        if any(name in parent.parts for parent in parents):
            nothing = Part(torch.zeros(0, site.in_features), torch.zeros(site.out_features, 0))
            found[name] = [parent.parts.get(name, nothing) for parent in parents]
    return found


def run_of(path: Path | str) -> Path | None:
    """The run folder that a path or a name under runs/ is of, itself, by one of its adapters or by a checkpoint."""
    for place in places(path):
        inside = within_run(place)
        for candidate in [place] if inside is None else [inside.run]:
            if (candidate / RUN).is_file() and (candidate / RECIPE).is_file():
                return candidate
    return None


def _read(
    path: Path | str,
    recipe: Recipe,
    base: CausalLM,
    sites: Mapping[str, Site],
    weight_of: Callable[[str], Tensor],
    place: int,
) -> Parent:
    earlier = _earlier(path, recipe, sites, base.hf.config.get_text_config().hidden_size)
    check_same_base(earlier, base, str(path), recipe.model.name)
    if strange := next((name for name in earlier.given if name not in sites), None):
        raise NotMergeable(
            f"{path}: changes {strange}, which is no linear layer of the base; `lrft merge` writes it into the weights"
        )
    run = run_of(path)
    own = None if run is None else own_recipe(run).recipe
    _check_start(path, earlier, own)
    parts = {name: _part(path, name, trained, weight_of) for name, trained in earlier.given.items()}
    told = []
    if own is not None and own.quantization != recipe.quantization:
        told.append(
            f"{path} was trained on a base in {own.quantization.method} and is combined on one in "
            f"{recipe.quantization.method}, where it is another function"
        )
    name = Path(path).name if run is None else run.name
    return Parent(f"{place}-{name}", parts, {**earlier.record, "name": name}, told)


def _earlier(path: Path | str, recipe: Recipe, sites: Mapping[str, Site], hidden_size: int) -> Earlier:
    section = recipe.model.model_copy(update={"adapter": str(path)})
    try:
        return read_earlier(recipe.model_copy(update={"model": section}), sites, hidden_size)
    except RecipeError as error:
        raise UsageError(f"{path}: {error.problems[0].message}") from error


def _check_start(path: Path | str, earlier: Earlier, own: Recipe | None) -> None:
    """Refuse a start that was taken off before the rest was rounded: on a base without it the change is another.

    Raises:
        NotMergeable: says how the adapter can be had all the same.
    """
    if own is None or "dense_base" in QUANTIZERS.declared(own.quantization.method).provides:
        return
    if any(trained.start is not None for trained in earlier.given.values()):
        raise NotMergeable(
            f"{path}: its base in {own.quantization.method} was rounded without the start of the adapter, so its "
            "change fits no other base; `lrft merge` writes it, or train with init: default"
        )


def _part(path: Path | str, name: str, trained: Trained, weight_of: Callable[[str], Tensor]) -> Part:
    """What was trained at one layer.

    Raises:
        NotMergeable: no change of the weight says it.
    """
    adapter = trained.adapter
    if reason := type(adapter).why_not_merged(adapter.config, adapter.site):
        raise NotMergeable(f"{path}: {reason}")
    if "own_weights" in adapter.provides:
        raise NotMergeable(
            f"{path}: {adapter.name} is the weight itself and no change of it; use `lrft merge`"
        )
    moved = adapter.delta_bias(torch.zeros(adapter.site.out_features))
    if moved is not None and (adapter.site.has_bias or moved.any()):
        raise NotMergeable(
            f"{path}: {adapter.name} changes the bias of {name}, which a combination has no place for; use `lrft merge`"
        )
    linear = "linear_delta" in adapter.provides
    if linear and trained.whole and isinstance(adapter, LowRank):
        branch = adapter.branch()
        A, B = branch.pair()
        return Part(A.detach().float(), B.detach().float(), branch.scale)
    if linear and (pair := trained.factors()) is not None:
        return Part(pair[0].detach(), pair[1].detach())
    change = trained.dense(weight_of(name)).detach()
    return Part(change.new_zeros(0, change.shape[1]), change.new_zeros(change.shape[0], 0), dense=change)


def _weights(recipe: Recipe, base: CausalLM) -> Callable[[str], Tensor]:
    """Layer -> its weight (out, in) float32 as the recipe's storage decodes it."""
    store = quantizer(recipe)

    def weight(name: str) -> Tensor:
        return store(*dense(base.hf.get_submodule(name))).weight().float().cpu()

    return weight
