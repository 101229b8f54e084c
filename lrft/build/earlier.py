"""The adapter that a new training begins with: read from a run or a PEFT folder, handed over, told and recorded."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from lrft.build.earlier_hub import fetch
from lrft.build.earlier_peft import CONFIG, FILE, read_peft
from lrft.core.adapter import Adapter
from lrft.core.notes import say
from lrft.core.params import Site
from lrft.core.stages import Plan, SitePlan
from lrft.model.builder import make_adapter, saved_start
from lrft.model.causal_lm import CausalLM
from lrft.model.new_rows import TOKENS
from lrft.model.origin import hub_id
from lrft.model.take_over import KEY, Taken, Trained, check_sites, take_over
from lrft.model.trained import BASE, SHARED
from lrft.recipe.inside_sections import RopeScaling
from lrft.recipe.load import load_recipe
from lrft.recipe.schema import Recipe
from lrft.registry.axes import ADAPTERS, OBJECTIVES
from lrft.registry.config import AdapterConfig
from lrft.registry.errors import RecipeError
from lrft.registry.json import Json
from lrft.training import checkpoint, checkpoint_folder
from lrft.training.folder import PLAN, RECIPE, RUN, find


@dataclass(frozen=True)
class Earlier:
    """What a training begins with.

    Attributes:
        given: site -> the adapter that was trained there.
        record: where it is from, with the sha256 of its tensors.
        base: fingerprint of the base that it was trained on, of a run in the same precision; else None.
        stretched: the scaling of the positions that it was trained with, of a run.
        said: the hub id that its file says of its base, where it says one.
    """

    given: dict[str, Trained]
    record: dict[str, Json]
    base: str | None = None
    stretched: RopeScaling | None = None
    said: str | None = None


def read_earlier(recipe: Recipe, sites: Mapping[str, Site]) -> Earlier:
    """What `model.adapter` names.

    Args:
        sites: those that the new adapter goes on, by module path.

    Raises:
        RecipeError: it cannot be read, or not by what is known here.
    """
    assert recipe.model.adapter is not None and recipe.adapter is not None
    hub = fetch(recipe.model.adapter)
    folder = Path(recipe.model.adapter) if hub is None else hub.folder
    if (folder / CONFIG).is_file() and not (folder.parent / RUN).is_file():
        given, method, said = read_peft(folder, sites, recipe.adapter.method)
        path: dict[str, Json] = {"path": str(folder), "kind": "peft", "method": method}
        if hub is not None:
            path |= {"repository": hub.name, "revision": hub.revision}
        return Earlier(given, {**path, "sha256": _hash(folder / FILE)}, said=said)
    # Beside a run's `adapter/` are its checkpoints, which hold the same in float32.
    run = folder.parent if folder.name == "adapter" and (folder.parent / RUN).is_file() else folder
    return _of_run(run, recipe)


def begin_with(recipe: Recipe, model: CausalLM, plan: Plan) -> tuple[dict[str, Json], list[str]]:
    """Let the adapters of the model begin with what `model.adapter` names; the record of it, and what to tell.

    Raises:
        RecipeError: they cannot.
    """
    earlier = read_earlier(recipe, _sites(plan))
    if earlier.base is not None and earlier.base != model.fingerprint:
        raise RecipeError(
            f"{recipe.model.adapter} was trained on another base model (fingerprint {earlier.base[:12]}, this one has "
            f"{model.fingerprint[:12]}); give the model.name and revision of that run",
            KEY,
        )
    taken = take_over(model, earlier.given)
    how = {how: len(names) for how, names in taken.sites.items()}
    record: dict[str, Json] = {**earlier.record, "sites": dict(how), "relative_error": taken.error}
    return record, list(_told(recipe, earlier, taken, len(_sites(plan))))


def check_earlier(recipe: Recipe, plan: Plan) -> None:
    """What can be said of `model.adapter` without weights.

    Raises:
        RecipeError: it cannot be read, or changes what gets no adapter.
    """
    sites = _sites(plan)
    check_sites(read_earlier(recipe, sites).given, sites)


def _sites(plan: Plan) -> dict[str, Site]:
    return {name: entry.site for name, entry in plan.items() if entry.config is not None}


def _told(recipe: Recipe, earlier: Earlier, taken: Taken, sites: int) -> Iterator[str]:
    count = {how: len(names) for how, names in taken.sites.items()}
    words = {
        "same": "goes on as it is at {} sites",
        "factors": "is taken over exactly by its factors at {} sites",
        "cut": f"is cut to the rank here at {{}} sites, which loses {taken.error:.2%} of its change (most at "
        f"{taken.worst[1]}: {taken.worst[0]:.2%})",
    }
    parts = [words[how].format(number) for how, number in count.items()]
    new = sites - sum(count.values())
    parts += [f"{new} sites begin anew"] if new else []
    yield f"model.adapter: {earlier.record['method']} of {recipe.model.adapter} {'; '.join(parts)}"
    mine = hub_id(recipe.model.name)
    if earlier.said is not None and mine is not None and earlier.said != mine:
        yield f"model.adapter: its file says that it is of {earlier.said}, and model.name is {mine}"
    if earlier.record["kind"] == "run" and earlier.stretched != recipe.model.rope_scaling:
        yield "model.adapter: it was trained with another model.rope_scaling, so it starts as another function here"
    if "pairs" in OBJECTIVES.declared(recipe.objective.method).requires:
        yield (
            f"model.adapter: {recipe.objective.method} compares with the base without any adapter and not with this "
            "start; merge it and name the merged model as model.name for that"
        )


def _of_run(folder: Path, recipe: Recipe) -> Earlier:
    """The adapter of a run's newest checkpoint, or of the one named, in float32."""
    run = find(folder)
    if not (run.path / RUN).is_file():
        raise RecipeError(f"{folder} holds an adapter in lrft's own form; name the run that trained it", KEY)
    saved = run.chosen or checkpoint_folder.newest(run.checkpoints, say)
    if saved is None:
        raise RecipeError(f"{folder} has no checkpoint yet; train it first", KEY)
    own = load_recipe(run.path / RECIPE, trained=True).recipe
    tensors = checkpoint.read_adapter(saved)
    odd = next((name for name in tensors if name.startswith((BASE, SHARED, TOKENS))), "")
    if own.adapter is None or odd:
        what = f"trained {odd.removeprefix(BASE)} beside its sites" if own.adapter else "has no adapter"
        raise RecipeError(f"{folder} {what}; merge it and name the merged model as model.name", KEY)
    cls, kind = ADAPTERS.get(own.adapter.method), type(own.adapter)
    plan = {name: SitePlan.of(record, kind) for name, record in run.read(PLAN).items()}
    given = {
        name: _trained(cls, entry.config, entry.site, tensors)
        for name, entry in plan.items()
        if entry.config is not None
    }
    record: dict[str, Json] = {
        "path": str(saved),
        "kind": "run",
        "method": own.adapter.method,
        "sha256": _hash(saved / "adapter.safetensors"),
    }
    same_precision = own.model.dtype == recipe.model.dtype
    base = run.read(RUN)["base_fingerprint"] if same_precision else None
    return Earlier(given, record, base, own.model.rope_scaling)


def _trained(cls: type[Adapter], config: AdapterConfig, site: Site, tensors: dict[str, Tensor]) -> Trained:
    """One site of a checkpoint."""
    prefix = f"{site.name}."
    held = {key.removeprefix(prefix): t for key, t in tensors.items() if key.startswith(prefix)}
    part = make_adapter(cls, config, site)
    start, _ = saved_start(site.name, part, tensors)
    change = {key: held[f"change.{key}"] for key in "ABD" if f"change.{key}" in held}
    part.load_state_dict(
        {k: t for k, t in held.items() if not k.startswith(("start.", "offset.", "change."))}
    )
    return Trained(part, start, change.get("D", (change["A"], change["B"]) if "A" in change else None))


def _hash(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()
