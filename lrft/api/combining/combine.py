"""`lrft combine`: one adapter made of several of one base, as a run that nobody trained."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from pydantic import ValidationError

from lrft.api.combining.curve import check_curve, draw_curve
from lrft.api.combining.folder import certify, write_run
from lrft.api.combining.origin import origin_of
from lrft.api.combining.parents import Parent, aligned, read_parents, recipe_of
from lrft.api.combining.record import Combined, Settings
from lrft.api.combining.scores import score_all
from lrft.core import stop
from lrft.core.combine import Combination, Parts
from lrft.core.notes import say
from lrft.evaluation.progress import EvaluationBar
from lrft.export.pairs import EXACT, Pair, SiteRecord, Wanted, nearest_pair
from lrft.export.write import check_free, whole_folder
from lrft.files.write import write_in
from lrft.model.load import load_model
from lrft.model.sites import linear_sites
from lrft.recipe.load import load_recipe
from lrft.recipe.schema import Recipe
from lrft.registry.axes import COMBINATIONS
from lrft.registry.config import MethodConfig
from lrft.registry.did_you_mean import did_you_mean
from lrft.registry.errors import NumericalError, UsageError
from lrft.training.run_manifest import text_of

CERTIFICATE = "fidelity.json"


@dataclass(frozen=True)
class Result:
    """What a combination is, and what of it is written.

    Attributes:
        exact: layer -> the change that the method says; of a dense one with an identity for B.
        pairs: layer -> the factors that stand for it.
        sites: how far these are from it.
        error: relative, of all layers together.
    """

    exact: dict[str, Pair]
    pairs: dict[str, Pair]
    sites: dict[str, SiteRecord]
    error: float


def combine(
    parents: Sequence[Path | str],
    out: Path | str,
    method: str,
    settings: Settings | None = None,
    trust_remote_code: bool = False,
) -> Combined:
    """Combine adapters into one at `out`; returns the certificate, also written there.

    What is written is a run folder with a checkpoint of step 0, which `lrft eval`, `merge`, `export`, `chat` and
    `model.adapter` take, and at its top the same adapter as PEFT has it.

    Args:
        parents: runs, checkpoints of runs, PEFT folders.
        out: a new or an empty folder.
        method: one of `lrft.registry.axes.COMBINATIONS`.

    Raises:
        UsageError: they cannot be combined so; nothing is written.
        NotMergeable: a parent is no change of the weights of layers.
        NumericalError: what they give together is not finite.
        WriteError: the disk is full or not writable; nothing is left at `out`.
    """
    settings, out = settings or Settings(), Path(out)
    check_free(out)
    config = _config(method, settings.set)
    recipe = _recipe(parents, settings)
    weights = _weights(COMBINATIONS.get(method), method, len(parents), settings.weights)
    check_curve(settings.curve, len(parents))
    base = load_model(recipe.model, trust_remote_code=trust_remote_code, seed=recipe.train.seed, sums=True)
    read = read_parents(parents, recipe, base)
    sites = linear_sites(base)
    del base
    made: Combination = COMBINATIONS.get(method)(config, weights, settings.seed)
    parts = aligned(read, sites)
    result = combined(made, parts, Wanted(settings.error, settings.rank))
    record = _record(method, config, made, read, result, settings)
    for line in record["told"]:
        say(line)
    with (
        stop.listening(f"{out} is as it was; the same command combines from the start"),
        whole_folder(out) as place,
    ):
        run = write_run(place, out.name, recipe, result.pairs, sites, origin_of(record), trust_remote_code)
        record |= certify(run, place, result.exact)
        if settings.evaluate:
            record["scores"] = score_all(run, read, settings.limit)
        if settings.curve:
            record["curve"] = draw_curve(run, place, read, settings.curve)
        write_in(place / CERTIFICATE, text_of(record))
    return record


@torch.no_grad()
def combined(made: Combination, sites: Mapping[str, Parts], wanted: Wanted) -> Result:
    """Combine layer by layer, and cut to what is wanted.

    Raises:
        UsageError: the method cannot take what is there.
    """
    made.look(sites)
    exact, pairs, records = dict[str, Pair](), dict[str, Pair](), dict[str, SiteRecord]()
    whole = missed = 0.0
    with EvaluationBar() as show:
        for name, parts in sites.items():
            stop.poll()
            found = made.combine(name, parts)
            own = made.rank(parts) if wanted == Wanted() else None
            limit = wanted if own is None else Wanted(rank=own)
            if isinstance(found, tuple) and limit == Wanted() and found[0].shape[0] > min(parts[0].shape):
                limit = Wanted(error=EXACT)
            _check_finite(name, *((found,) if isinstance(found, torch.Tensor) else found))
            if isinstance(found, torch.Tensor):
                exact[name] = Pair(found, torch.eye(found.shape[0]))
                pairs[name] = nearest_pair(found, limit)
            else:
                exact[name] = Pair(*found)
                pairs[name] = nearest_pair(exact[name], limit) if found[0].shape[0] else _nothing(parts)
            change = exact[name].dense()
            _check_finite(name, change)
            norm, left = float(change.norm()), float((pairs[name].dense() - change).norm())
            whole, missed = whole + norm**2, missed + left**2
            records[name] = _site(pairs[name], left / norm if norm else 0.0)
            show("layers", len(pairs), len(sites))
    return Result(exact, pairs, records, (missed / whole) ** 0.5 if whole else 0.0)


def _check_finite(site: str, *parts: torch.Tensor) -> None:
    """Refuse a change that is no number, or has no norm, as weights far from 1 make it.

    Raises:
        NumericalError: names the layer.
    """
    if not all(one.norm().isfinite() for one in parts):
        raise NumericalError(
            f"{site}: what the adapters give together is not finite; give smaller weights, or other adapters"
        )


def _site(pair: Pair, error: float) -> SiteRecord:
    return {"rank": pair.rank, "exact": pair.exact, "error": error, "energy": max(1 - error**2, 0.0)}


def _nothing(parts: Parts) -> Pair:
    """A change of nothing, which has a rank all the same."""
    out_features, in_features = parts[0].shape
    return Pair(torch.zeros(1, in_features), torch.zeros(out_features, 1))


def _config(method: str, values: Mapping[str, object]) -> MethodConfig:
    if method not in COMBINATIONS.names():
        names = COMBINATIONS.names()
        raise UsageError(f"--method {method}: choose {', '.join(names)}{did_you_mean(method, names)}")
    cls = COMBINATIONS.declared(method).config
    known = [name for name in cls.model_fields if name != "method"]
    for name in values:
        if name not in known:
            raise UsageError(
                f"--set {name}: {method} has {', '.join(known) or 'no settings'}{did_you_mean(name, known)}"
            )
    try:
        return cls.model_validate({"method": method, **values})
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(map(str, first["loc"]))
        raise UsageError(f"--set {key}: {first['msg'].lower()}") from None


def _recipe(parents: Sequence[Path | str], settings: Settings) -> Recipe:
    """That of the first run, or the one that was given: it says base, tokenizer and data."""
    found = recipe_of(parents) if settings.recipe is None else load_recipe(settings.recipe).recipe
    if found is None:
        raise UsageError(
            "--recipe: none of these is a run, so nothing says the base and the data; give --recipe FILE, of a recipe "
            "that could train such an adapter"
        )
    if found.model.head is not None:
        raise UsageError(
            "model.head: scores of whole texts are no adapter of a language model; use `lrft merge`"
        )
    return found


def _weights(cls: type[Combination], method: str, count: int, given: Sequence[float] | None) -> list[float]:
    """One weight a parent.

    Raises:
        UsageError: there are too few or too many parents or weights, or the method takes none.
    """
    if count < cls.least or (cls.most is not None and count > cls.most):
        number = f"{cls.least} or more" if cls.most is None else f"{cls.least} to {cls.most}"
        raise UsageError(f"--method {method}: takes {number} adapters, and here are {count}")
    if given is None:
        return cls.own_weights(count)
    if cls.weighs == "none":
        raise UsageError(f"--weights: {method} has none; leave them out, or choose cat, svd or ties")
    if not all(map(math.isfinite, given)):
        raise UsageError(f"--weights: {', '.join(map(str, given))} are not all finite; give numbers")
    if len(given) != count:
        raise UsageError(f"--weights: {len(given)} for {count} adapters; give one each")
    return list(given)


def _record(
    method: str,
    config: MethodConfig,
    made: Combination,
    read: Sequence[Parent],
    result: Result,
    settings: Settings,
) -> Combined:
    told = [line for parent in read for line in parent.told]
    beyond = [name for name, one in result.sites.items() if not one["exact"]]
    if beyond:
        worst = max(beyond, key=lambda name: result.sites[name]["error"])
        told.append(
            f"{len(beyond)} of {len(result.sites)} layers are cut to a rank, which leaves out {result.error:.2%} of "
            f"the change (most of {worst}: {result.sites[worst]['error']:.2%})"
        )
    return {
        "combination": method,
        "settings": config.model_dump(mode="json", exclude={"method"}),
        "weights": None if made.weighs == "none" else made.weights,
        "seed": settings.seed,
        "parents": [{**parent.record, "layers": len(parent.parts)} for parent in read],
        "rank": max(pair.rank for pair in result.pairs.values()),
        "relative_error": result.error,
        "exact_sites": sum(one["exact"] for one in result.sites.values()),
        "sites": result.sites,
        "found": made.found(),
        "told": told,
    }
