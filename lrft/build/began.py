"""How a run began: what later steps and scores follow from beside the recipe, for run.json and each checkpoint."""

from __future__ import annotations

from functools import partial

from lrft.build.adapt import Adaptation
from lrft.build.text import Text
from lrft.core.run import Run
from lrft.data.pack import ORDER
from lrft.model.load import load_model
from lrft.model.weights import ModelWeights
from lrft.recipe.resolved import decisive_hash
from lrft.registry.json import Json
from lrft.training.checkpoint import Identity
from lrft.training.trained_on import TrainedOn
from lrft.training.versions import versions_of_numbers


def identified(
    run: Run,
    text: Text,
    adaptation: Adaptation,
    recipe_hash: str,
    trained_on: TrainedOn | None,
    processes: int | None,
    trusted: bool,
    teacher: dict[str, Json] | None = None,
) -> tuple[dict[str, Json], Identity]:
    """How the run began and what its checkpoints keep of it; the run then has its base too, for what looks at that.

    Args:
        processes, teacher, trained_on: see `how_it_began`, `known_as`.
        trusted: code that comes with the base may run.
    """
    recipe = run.recipe
    load = partial(load_model, recipe.model, trust_remote_code=trusted, seed=recipe.train.seed)
    run.weights = ModelWeights(adaptation.model, load)
    began = how_it_began(run, text, adaptation, processes, teacher)
    return began, known_as(recipe_hash, run, adaptation, began, trained_on)


def how_it_began(
    run: Run,
    text: Text,
    adaptation: Adaptation,
    processes: int | None,
    teacher: dict[str, Json] | None = None,
) -> dict[str, Json]:
    """Values of run.json.

    Args:
        processes: how many a run that is gone on with began with; None for a new one.
        teacher: the sums of the objective's; None where it has none.
    """
    return {
        "base_fingerprint": adaptation.model.fingerprint,
        "data": dict(text.fingerprints),
        "date": text.renderer.today.isoformat(),
        "total_steps": run.total_steps,
        "packing": adaptation.packing,
        "packing_order": ORDER,
        "joined": adaptation.joined,
        "recomputed_layers": adaptation.recomputed,
        "processes": processes or run.processes,
        **({} if teacher is None else {"teacher": teacher}),
        **_extended(run),
    }


def known_as(
    recipe_hash: str,
    run: Run,
    adaptation: Adaptation,
    began: dict[str, Json],
    trained_on: TrainedOn | None,
) -> Identity:
    """What the manifest of each checkpoint keeps of the run.

    Args:
        trained_on: what rows and base are; None where nothing is written.
    """
    plan: dict[str, Json] = {name: entry.record() for name, entry in adaptation.plan.items()}
    relied: dict[str, Json] = {"plan": plan, "run": began, "decisive": decisive_hash(run.recipe)}
    sums = {} if trained_on is None else trained_on.sums()
    return Identity(
        recipe_hash,
        adaptation.model.fingerprint,
        relied,
        sums,
        versions_of_numbers(run.device, run.kernels is not None),
    )


def _extended(run: Run) -> dict[str, Json]:
    """The steps that were added: after which step, how many, and what the rate does."""
    pairs = zip(run.earlier_ends, run.recipe.train.extended, strict=True)
    found: list[Json] = [{"after": end, **added.model_dump()} for end, added in pairs]
    return {"extended": found} if found else {}
