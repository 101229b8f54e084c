"""How a run began: what later steps and scores follow from beside the recipe, for run.json and each checkpoint."""

from __future__ import annotations

from lrft.build.adapt import Adaptation
from lrft.build.text import Text
from lrft.core.run import Run
from lrft.data.pack import ORDER
from lrft.recipe.resolved import decisive_hash
from lrft.registry.json import Json
from lrft.training.checkpoint import Identity
from lrft.training.trained_on import TrainedOn
from lrft.training.versions import versions_of_numbers


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
    return Identity(recipe_hash, adaptation.model.fingerprint, relied, sums, versions_of_numbers(run.device))


def _extended(run: Run) -> dict[str, Json]:
    """The steps that were added: after which step, how many, and what the rate does."""
    pairs = zip(run.earlier_ends, run.recipe.train.extended, strict=True)
    found: list[Json] = [{"after": end, **added.model_dump()} for end, added in pairs]
    return {"extended": found} if found else {}
