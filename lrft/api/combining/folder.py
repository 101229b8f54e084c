"""The folder of a combination: a run with a checkpoint of step 0, and the adapter as PEFT has it at its top."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from safetensors.torch import save
from torch import Tensor

from lrft.api.combining.origin import Origin
from lrft.api.combining.record import Combined
from lrft.api.exporting.form import write_beside
from lrft.api.opening.compared import rows_to_compare
from lrft.build.adapt import Adaptation, adapt
from lrft.build.adapter_folder import write_adapter
from lrft.build.dataset import read_text
from lrft.build.identify import identify
from lrft.build.text import Text
from lrft.core.batch import Batch
from lrft.core.notes import say
from lrft.core.params import Site
from lrft.core.stages import SitePlan
from lrft.data.eval_batches import eval_batches
from lrft.data.pack import ORDER
from lrft.export.fidelity import compare
from lrft.export.pairs import Pair
from lrft.export.peft_format import adapter_files
from lrft.export.plain_form import CONFIG, read_pairs
from lrft.export.served import Served
from lrft.export.targets import PLAIN
from lrft.files.write import make_folder, write_in
from lrft.model.trained import load_trained_tensors
from lrft.recipe.resolved import decisive_hash, recipe_hash, resolved
from lrft.recipe.schema import Recipe
from lrft.registry.json import Json, to_section
from lrft.training import folder as run_folder
from lrft.training.checkpoint import Identity
from lrft.training.checkpoint_folder import write_folder
from lrft.training.device import make_accelerator
from lrft.training.folder import PLAN, RECIPE, RESULT, RUN, RunFolder
from lrft.training.opened import ADAPTER, FORMAT, OPTIMIZER, STATE
from lrft.training.relied import own_recipe
from lrft.training.trained_on import KEY, TrainedOn
from lrft.training.versions import versions_of_numbers

# Sections that made a parent what it is, and say nothing of the result.
OF_TRAINING = (
    "init",
    "allocate",
    "restart",
    "select",
    "prune",
    "analyse",
    "trainable",
    "optimizer",
    "schedule",
)


@dataclass(frozen=True)
class Made:
    """A combination that was written, as it is opened: the base with its adapter, and the data of the recipe."""

    recipe: Recipe
    text: Text
    adaptation: Adaptation

    def batches(self) -> tuple[list[Batch], str | None]:
        """The rows that models are compared on, as batches, and the key that they are from."""
        rows, rows_from = rows_to_compare(self.recipe, self.text)
        return list(eval_batches(rows, self.recipe.eval.batch_tokens, self.text.pad_id)), rows_from


def write_run(
    place: Path,
    name: str,
    recipe: Recipe,
    pairs: Mapping[str, Pair],
    sites: Mapping[str, Site],
    origin: Origin,
    trust_remote_code: bool,
) -> Made:
    """Fill a fresh folder, and open what it says.

    Args:
        name: of the folder, for people.
        sites: the layers of the base.
    """
    own = recipe_for(recipe, pairs)
    tensors = _tensors(pairs)
    plan = _plan(own, pairs, sites)
    text = read_text(own, training=False, trust_remote_code=trust_remote_code)
    device = make_accelerator(own.train.device, own.model.dtype).device
    adaptation = adapt(
        own,
        device=device,
        trust_remote_code=trust_remote_code,
        saved=tensors,
        planned=plan,
        trains=False,
        sums=True,
    )
    load_trained_tensors(adaptation.model, tensors)
    adaptation.model.eval()
    now = replace(identify(own, text), base=adaptation.model.weight_sums)
    began = _began(adaptation, text)
    _write_checkpoint(place, own, adaptation, tensors, plan, began, now, device)
    card: dict[str, Json] = {"name": name, "step": 0, "trainable": sum(t.numel() for t in tensors.values())}
    files = adapter_files(adaptation.model, own, card)
    about = files.pop("README.md").decode().partition("\n# ")[0]
    for file, content in files.items():
        write_in(place / file, content)
    write_beside(place, own, text, adaptation.model)
    write_in(place / "README.md", f"{about}\n# {name}\n{origin.card}")
    write_adapter(place / "adapter", adaptation.model, own, text, card)  # as every run has it
    _write_record(place, own, origin, card, plan, began, now, trust_remote_code)
    return Made(own, text, adaptation)


def certify(made: Made, place: Path, exact: Mapping[str, Pair]) -> Combined:
    """What was written, read back, beside the combination before it was cut and rounded, on rows of the recipe."""
    batches, rows_from = made.batches()
    record: Combined = {"rows": sum(len(batch.input_ids) for batch in batches), "rows_from": rows_from}
    if not batches:
        say("data.eval: no rows, so what was written was not compared with the combination")
        return record
    model = made.adaptation.model
    written = (
        Served(model, read_pairs(place)) if (place / CONFIG).is_file() else model
    )  # PEFT has no form of it
    return {**record, **compare(Served(model, exact), written, batches)}


def recipe_for(recipe: Recipe, pairs: Mapping[str, Pair]) -> Recipe:
    """The recipe whose adapter has the rank of every pair, in float32, and nothing of how a parent was trained."""
    plain = {key: value for key, value in recipe.model_dump(mode="json").items() if key not in OF_TRAINING}
    rank = max(pair.rank for pair in pairs.values())
    adapter: dict[str, Json] = {
        "method": PLAIN,
        "rank": rank,
        "alpha": float(rank),
        "dtype": "float32",
        "targets": list(pairs),
    }
    model = {**to_section(plain["model"]), "adapter": None, "adapters": []}
    return Recipe.model_validate({**plain, "model": model, "adapter": adapter})


def _tensors(pairs: Mapping[str, Pair]) -> dict[str, Tensor]:
    found = {}
    for site, pair in pairs.items():
        found[f"{site}.A"], found[f"{site}.B"] = pair.A.float(), pair.scale * pair.B.float()
    return found


def _plan(recipe: Recipe, pairs: Mapping[str, Pair], sites: Mapping[str, Site]) -> dict[str, dict[str, Json]]:
    assert recipe.adapter is not None
    return {
        name: SitePlan(
            sites[name], recipe.adapter.model_copy(update={"rank": pair.rank, "alpha": float(pair.rank)})
        ).record()
        for name, pair in pairs.items()
    }


def _began(adaptation: Adaptation, text: Text) -> dict[str, Json]:
    return {
        "base_fingerprint": adaptation.model.fingerprint,
        "data": dict(text.fingerprints),
        "date": text.renderer.today.isoformat(),
        "total_steps": 0,
        "packing": False,
        "packing_order": ORDER,
        "joined": False,
        "processes": 1,
    }


def _write_checkpoint(
    place: Path,
    recipe: Recipe,
    adaptation: Adaptation,
    tensors: Mapping[str, Tensor],
    plan: Mapping[str, Json],
    began: Mapping[str, Json],
    now: TrainedOn,
    device: torch.device,
) -> None:
    relied: dict[str, Json] = {"plan": plan, "run": began, "decisive": decisive_hash(recipe)}
    known = Identity(
        recipe_hash(recipe), adaptation.model.fingerprint, relied, now.sums(), versions_of_numbers(device)
    )
    state = {"step": 0, "total_steps": 0, "optimizer": {}, "schedule": {}, "callbacks": {}}
    files = {
        ADAPTER: save({name: tensor.contiguous() for name, tensor in sorted(tensors.items())}),
        OPTIMIZER: save({}),
        STATE: json.dumps({**state, "parameters": sorted(tensors)}, indent=1, sort_keys=True).encode(),
    }
    make_folder(place / "checkpoints")
    write_folder(place / "checkpoints" / "step-0", files, {"format": FORMAT, "step": 0, **known.record()})


def _write_record(
    place: Path,
    recipe: Recipe,
    origin: Origin,
    card: Mapping[str, Json],
    plan: Mapping[str, object],
    began: Mapping[str, Json],
    now: TrainedOn,
    trust_remote_code: bool,
) -> None:
    """run.json, plan.json, result.json, and last recipe.yaml, since a folder with one counts as a run."""
    run = RunFolder(place)
    made: dict[str, object] = {
        "recipe_name": card["name"],
        "recipe_hash": recipe_hash(recipe),
        "origins": {},
        "trainable": card["trainable"],
        "seed": recipe.train.seed,
        "trust_remote_code": trust_remote_code,
        origin.key: dict(origin.record),
        KEY: now.record(),
        **began,
        **run_folder.environment(),
    }
    result: dict[str, Json] = {**card, "loss": None, "seconds": 0.0, "peak_memory_bytes": 0}
    run.write_known({PLAN: plan, RUN: made, RESULT: result, RECIPE: resolved(recipe)})
    own_recipe(place)  # refuses a section that goes with a parent's adapter alone
