"""The adapter that a new training begins with: read from a run or a PEFT folder, handed over, told and recorded."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from lrft.build.earlier_base import check_base
from lrft.build.earlier_hub import fetch
from lrft.build.earlier_peft import CONFIG, FILE, read_peft
from lrft.build.steps import drawing
from lrft.core.adapter import Adapter
from lrft.core.params import Site
from lrft.core.shared import Shared
from lrft.core.stages import Plan, SitePlan
from lrft.files.sums import file_sum
from lrft.model.builder import make_adapter, saved_start
from lrft.model.causal_lm import CausalLM
from lrft.model.new_rows import TOKENS
from lrft.model.origin import hub_id
from lrft.model.take_over import KEY, Taken, Trained, check_sites, take_over
from lrft.model.trained import BASE, SHARED
from lrft.model.units import UNITS
from lrft.recipe.inside_sections import RopeScaling
from lrft.recipe.schema import Recipe
from lrft.registry.axes import ADAPTERS, OBJECTIVES
from lrft.registry.config import AdapterConfig
from lrft.registry.errors import CheckpointError, RecipeError, UsageError
from lrft.registry.json import Json, to_section
from lrft.training.chosen import open_chosen
from lrft.training.folder import RUN, RunFolder, find
from lrft.training.opened import ADAPTER, OpenCheckpoint
from lrft.training.relied import check_relied, own_recipe, plan_of
from lrft.training.replayed import is_record
from lrft.training.trained_on import KEY as TRAINED_ON


@dataclass(frozen=True)
class Earlier:
    """What a training begins with.

    Attributes:
        given: site -> the adapter that was trained there.
        record: where it is from, with the sha256 of its tensors.
        base: fingerprint of the base that it was trained on, of a run in the same precision; else None.
        values: sum of all values of that base, where the run kept it.
        stretched: the scaling of the positions that it was trained with, of a run.
        said: the base as its file names it, by its hub id or the name of a folder, where it does.
    """

    given: dict[str, Trained]
    record: dict[str, Json]
    base: str | None = None
    stretched: RopeScaling | None = None
    said: str | None = None
    values: str | None = None


def read_earlier(recipe: Recipe, sites: Mapping[str, Site], hidden_size: int | None = None) -> Earlier:
    """What `model.adapter` names.

    Args:
        sites: those that the new adapter goes on, by module path.
        hidden_size: of the base, where adapters whose sites share a part are read too; no training begins with them.

    Raises:
        RecipeError: it cannot be read, or not by what is known here.
    """
    assert recipe.model.adapter is not None and recipe.adapter is not None
    hub = fetch(recipe.model.adapter)
    folder = Path(recipe.model.adapter) if hub is None else hub.folder
    if (folder / CONFIG).is_file() and not any((place / RUN).is_file() for place in (folder, folder.parent)):
        given, method, said = read_peft(folder, sites, recipe.adapter.method)
        path: dict[str, Json] = {"path": str(folder), "kind": "peft", "method": method}
        if hub is not None:
            path |= {"repository": hub.name, "revision": hub.revision}
        return Earlier(given, {**path, "sha256": file_sum(folder / FILE)["sha256"]}, said=said)
    # Beside a run's `adapter/` are its checkpoints, which hold the same in float32.
    return _of_run(folder, recipe, hidden_size)


def begin_with(recipe: Recipe, model: CausalLM, plan: Plan) -> tuple[dict[str, Json], list[str]]:
    """Let the adapters of the model begin with what `model.adapter` names; the record of it, and what to tell.

    Raises:
        RecipeError: they cannot.
    """
    earlier = read_earlier(recipe, _sites(plan))
    check_base(earlier, recipe, model)
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
    mine = hub_id(recipe.model.name) or Path(recipe.model.name).name
    if earlier.said is not None and ("/" in earlier.said) == ("/" in mine) and earlier.said != mine:
        yield f"model.adapter: its file says that it is of {earlier.said}, and model.name is {mine}"
    if earlier.record["kind"] == "run" and earlier.stretched != recipe.model.rope_scaling:
        yield "model.adapter: it was trained with another model.rope_scaling, so it starts as another function here"
    draws = drawing(recipe)
    compares = "fixed_base" in OBJECTIVES.declared(recipe.objective.method).requires
    if compares or (draws is not None and draws.beta):
        yield (
            f"model.adapter: {recipe.objective.method} compares with the base without any adapter and not with this "
            "start; merge it and name the merged model as model.name for that"
        )


def _of_run(folder: Path, recipe: Recipe, hidden_size: int | None) -> Earlier:
    """The adapter of a run's newest checkpoint, or of the one named, in float32."""
    run = find(folder)
    if not (run.path / RUN).is_file():
        raise RecipeError(f"{folder} holds an adapter in lrft's own form; name the run that trained it", KEY)
    own, saved, tensors, planned = _opened(run)
    beside = (BASE, TOKENS, UNITS) if hidden_size is not None else (BASE, SHARED, TOKENS, UNITS)
    odd = next((name for name in tensors if name.startswith(beside)), "")
    if own.adapter is None or odd:
        what = f"trained {odd.removeprefix(BASE)} beside its sites" if own.adapter else "has no adapter"
        raise RecipeError(f"{folder} {what}; merge it and name the merged model as model.name", KEY)
    cls, kind = ADAPTERS.get(own.adapter.method), type(own.adapter)
    plan = {name: SitePlan.of(record, kind) for name, record in planned.items()}
    placed = {name: entry.site for name, entry in plan.items() if entry.config is not None}
    shared = None if hidden_size is None else _shared(cls.shared(own.adapter, placed, hidden_size), tensors)
    given = {
        name: _trained(cls, entry.config, entry.site, tensors, shared)
        for name, entry in plan.items()
        if entry.config is not None
    }
    if stray := next(
        (key for key in tensors if not key.startswith((SHARED, *(f"{name}." for name in given)))), None
    ):
        raise RecipeError(
            f"{folder} holds {stray}, which is of no site of its plan; restore it from a copy", KEY
        )
    record: dict[str, Json] = {
        "path": str(saved.path),
        "kind": "run",
        "method": own.adapter.method,
        "sha256": saved.manifest["files"][ADAPTER]["sha256"],
    }
    same_precision = own.model.dtype == recipe.model.dtype
    began = run.read(RUN) if same_precision else {}
    values = to_section(to_section(began.get(TRAINED_ON)).get("base")).get("sha256")
    base = began.get("base_fingerprint")
    return Earlier(given, record, base, own.model.rope_scaling, None, None if values is None else str(values))


def _opened(run: RunFolder) -> tuple[Recipe, OpenCheckpoint, dict[str, Tensor], dict[str, Any]]:
    """The run's recipe, its checkpoint, of which the files are closed again, the tensors and the plan.

    Raises:
        RecipeError: there is no checkpoint yet, or something of the run is damaged.
    """
    try:
        own = own_recipe(run.path).recipe
        with open_chosen(run) as saved:
            check_relied(saved, own, run.read(RUN))
            if is_record(saved):
                raise UsageError(
                    f"{saved.path}: holds what the steps were, not what they trained (optimizer.checkpoint: record); "
                    "merge the run, and begin on the merged model"
                )
            return own, saved, saved.tensors(), plan_of(saved, run)
    except (UsageError, CheckpointError) as error:
        raise RecipeError(str(error), KEY) from error


def _shared(part: Shared | None, tensors: dict[str, Tensor]) -> Shared | None:
    """What all sites share, as it was trained.

    Raises:
        RecipeError: the run holds another one.
    """
    held = {key.removeprefix(SHARED): value for key, value in tensors.items() if key.startswith(SHARED)}
    wanted = {} if part is None else {name: value.shape for name, value in part.state_dict().items()}
    if {name: value.shape for name, value in held.items()} != wanted:
        raise RecipeError(
            "the run holds another part beside its sites than its plan says; restore it from a copy", KEY
        )
    if part is not None:
        part.load_state_dict(held)
    return part


def _trained(
    cls: type[Adapter],
    config: AdapterConfig,
    site: Site,
    tensors: dict[str, Tensor],
    shared: Shared | None = None,
) -> Trained:
    """One site of a checkpoint."""
    prefix = f"{site.name}."
    held = {key.removeprefix(prefix): t for key, t in tensors.items() if key.startswith(prefix)}
    part = make_adapter(cls, config, site, shared)
    start, _ = saved_start(site.name, part, tensors)
    change = {key: held[f"change.{key}"] for key in "ABD" if f"change.{key}" in held}
    own = {k: t for k, t in held.items() if not k.startswith(("start.", "offset.", "change."))}
    part.make_room("", own)
    shapes = {name: tensor.shape for name, tensor in part.state_dict().items()}
    if {name: tensor.shape for name, tensor in own.items()} != shapes:
        odd = next((n for n in {**shapes, **own} if n not in own or own[n].shape != shapes.get(n)), "")
        raise RecipeError(
            f"the run holds other tensors at {site.name} than its plan says ({odd}); restore it from a copy",
            KEY,
        )
    part.load_state_dict(own)
    return Trained(part, start, change.get("D", (change["A"], change["B"]) if "A" in change else None))
