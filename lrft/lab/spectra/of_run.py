"""The changes that a run made of its base weights, whatever its method."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import torch

from lrft.api.opening.open_run import open_model
from lrft.build.adapt import Adaptation
from lrft.core.adapted import Adapted, adapted
from lrft.core.elastic import Elastic
from lrft.lab.spectra.measure import SiteChange
from lrft.lab.spectra.subject import Subject
from lrft.model.load import load_model
from lrft.model.origin import public_name
from lrft.model.sites import linear_sites
from lrft.model.trained import base_parameters
from lrft.model.weights import ModelWeights
from lrft.recipe.schema import Recipe
from lrft.registry.errors import NotMergeable
from lrft.training.folder import RunFolder


def changes_of_run(folder: RunFolder) -> Subject:
    """What the run's newest good checkpoint, or the one that was named, changed.

    Raises:
        NotMergeable: nothing that trained is a change of a weight.
        UsageError, CheckpointError: see `lrft.api.opening.open_run`.
    """
    recipe, adaptation, step = open_model(folder)
    model = adaptation.model
    reload = partial(
        load_model,
        recipe.model,
        trust_remote_code=folder.trusted,
        seed=recipe.train.seed,
    )
    weights = ModelWeights(model, reload)
    names = weights.names()
    if not names:
        method = _method(recipe)
        raise NotMergeable(
            f"{folder.path}: {method} is no change of a weight, so there is no spectrum to look at; inspect a run of a "
            "method that merges"
        )
    return Subject(
        of=str(folder.path),
        kind="run",
        step=step,
        method=_method(recipe),
        base=public_name(recipe.model.name),
        left_out=_left_out(adaptation, set(names)),
        count=len(names),
        changes=_changes(weights, adaptation),
    )


def _method(recipe: Recipe) -> str:
    return "base weights that train" if recipe.adapter is None else recipe.adapter.method


@torch.no_grad()
def _changes(weights: ModelWeights, adaptation: Adaptation) -> Iterator[SiteChange]:
    for site, module in weights.adapted():
        own = "own_weights" in module.adapter.provides
        yield SiteChange(
            site,
            (module.base.out_features, module.base.in_features),
            _allocated(module, adaptation, site),
            module.factors(),
            module.change,
            None if own else module.pretrained_weight,
        )
    for change in weights.trained():
        before, dense = (lambda of=change: of.before), (lambda of=change: of.change)
        yield SiteChange(change.site, _shape(change.change), None, None, dense, before)


def _allocated(module: Adapted, adaptation: Adaptation, site: str) -> int | None:
    """Rank components the adapter has: those that are shown, where they are hidden and shown while it trains."""
    if isinstance(module.adapter, Elastic):
        return int(module.adapter.mask.sum())
    return adaptation.plan[site].rank


def _shape(matrix: torch.Tensor) -> tuple[int, int]:
    out, into = matrix.shape
    return out, into


def _left_out(adaptation: Adaptation, looked_at: set[str]) -> dict[str, str]:
    """What trained and is no change of a linear map's weight."""
    model = adaptation.model
    found = {
        site: f"{module.adapter.name} there is no change of a linear map's weight"
        for site, module in adapted(model.hf)
        if site not in looked_at
    }
    linear = linear_sites(model)
    for name, _ in base_parameters(model):
        if name.removesuffix(".weight") not in looked_at or name.removesuffix(".weight") not in linear:
            found[name] = "it trains itself, and is no weight of a linear layer"
    return found
