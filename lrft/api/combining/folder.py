"""The folder of a combination: a run that was not trained, and the adapter as PEFT has it at its top."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from torch import Tensor

from lrft.api.combining.origin import Origin
from lrft.api.combining.record import Combined
from lrft.api.combining.untrained import Untrained, how_it_began
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
from lrft.export.fidelity import compare
from lrft.export.pairs import Pair
from lrft.export.peft_format import adapter_files
from lrft.export.plain_form import CONFIG, read_pairs
from lrft.export.served import Served
from lrft.export.targets import PLAIN
from lrft.files.write import write_in
from lrft.model.trained import load_trained_tensors
from lrft.recipe.schema import Recipe
from lrft.registry.json import Json, to_section
from lrft.training.device import make_accelerator

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
    run = Untrained(place, own, tensors, plan, how_it_began(adaptation, text), now)
    run.write_checkpoint(adaptation.model.fingerprint, device)
    card: dict[str, Json] = {"name": name, "step": 0, "trainable": sum(t.numel() for t in tensors.values())}
    files = adapter_files(adaptation.model, own, card)
    about = files.pop("README.md").decode().partition("\n# ")[0]
    for file, content in files.items():
        write_in(place / file, content)
    write_beside(place, own, text, adaptation.model)
    write_in(place / "README.md", f"{about}\n# {name}\n{origin.card}")
    write_adapter(place / "adapter", adaptation.model, own, text, card)  # as every run has it
    run.write_record(origin, card, trust_remote_code)
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
