"""What a run writes of itself: before its first step, and after its last."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch

from lrft.api.training.claim import is_free
from lrft.build.adapter_folder import write_adapter
from lrft.build.job import Job
from lrft.build.measure import matrix_shares
from lrft.core import stop
from lrft.core.notes import say
from lrft.core.params import count
from lrft.core.run import Run
from lrft.export.own_form import why_own_form
from lrft.files.scratch import sweep
from lrft.recipe.load import DEFAULT, LoadedRecipe
from lrft.recipe.resolved import resolved
from lrft.registry.axes import OPTIMIZERS
from lrft.registry.json import Json
from lrft.training.adapter_folders import THEN
from lrft.training.folder import METRICS, PLAN, RECIPE, RESULT, RUN, RunFolder
from lrft.training.metrics import last_loss
from lrft.training.scorer import Scorer
from lrft.training.trained_on import KEY
from lrft.training.versions import environment


@stop.held()
def write_start(job: Job, loaded: LoadedRecipe, trust_remote_code: bool) -> None:
    """Write what is known before step 1; the recipe last, since a folder with one counts as a run."""
    folder, run = job.folder, job.run
    assert job.trained_on is not None, "a training knows what it trains on"
    origin = job.adaptation.origin or (folder.read(RUN).get("adapter") if folder.started else None)
    trainable = count(info.param for info in run.parameters)
    record: dict[str, object] = {
        "recipe_name": loaded.name,
        "recipe_hash": job.identity.recipe,
        "origins": _origins(folder, loaded),
        "gate": job.text.record(),
        "trainable": trainable,
        "seed": run.seed,
        "attention": job.adaptation.model.attention,
        "matrices": matrix_shares(job.adaptation, loaded.recipe),
        "trust_remote_code": trust_remote_code,
        KEY: job.trained_on.record(),
        **job.began,
        **({} if origin is None else {"adapter": origin}),
        **environment(),
    }
    plan = {name: entry.record() for name, entry in job.adaptation.plan.items()}
    sweep(folder.path)
    # A result would be that of a run which is longer now.
    folder.write_known(
        {PLAN: plan, RUN: record, RECIPE: resolved(loaded.recipe)}, gone=[RESULT], growing=[METRICS]
    )
    folder.mark_as_latest()
    for note in _notes(job, trainable):
        say(note)


def _origins(folder: RunFolder, loaded: LoadedRecipe) -> dict[str, str]:
    """Where each value that is no default was written: by whom the run began, except for what a resume may change."""
    now = {key: place for key, place in loaded.origins.items() if place != str(DEFAULT)}
    before: dict[str, str] | None = folder.read(RUN).get("origins") if folder.started else None
    if before is None:
        return now
    kept = {key: place for key, place in before.items() if not is_free(key)}
    return kept | {key: place for key, place in now.items() if is_free(key)}


@stop.held()
class Took(NamedTuple):
    """What a training took to its last step: what is scored after it is not counted in."""

    seconds: float
    peak_memory: int  # bytes


def write_end(job: Job, took: Took) -> dict[str, Json]:
    """Write the adapter folder and result.json."""
    run, folder = job.run, job.folder
    result: dict[str, Json] = {
        "step": run.step,
        "loss": run.metrics.get("loss"),
        "trainable": count(info.param for info in run.parameters),
        "seconds": round(took.seconds, 1),
        "peak_memory_bytes": took.peak_memory,
        "name": folder.path.name,
    }
    result |= run.summary
    result |= _best(run)
    if job.text.removed is not None:
        result["removed_rows"] = job.text.removed.record()
    if result["loss"] is None:  # resumed after the last step: the numbers stand in the record
        result["loss"] = last_loss(folder.path / METRICS)
    files = write_adapter(folder.adapter, job.adaptation.model, run.recipe, job.text, result)
    if "adapter_config.json" not in files:
        say(f"adapter/ has lrft's own form: {why_own_form(job.adaptation.model, run.recipe)}")
    folder.write_known({RESULT: result}, grown=[METRICS], then=THEN)
    return result


def _best(run: Run) -> dict[str, Json]:
    """The best score and its checkpoint; nothing where no score was a number."""
    scorer = next((c for c in run.callbacks if isinstance(c, Scorer)), None)
    if scorer is None or not scorer.best_step:
        return {}
    return {
        f"best_{scorer.metric.name}": scorer.best,
        "best_checkpoint": f"checkpoints/step-{scorer.best_step}",
    }


def _notes(job: Job, trainable: int) -> Iterator[str]:
    """What the user is told before step 1."""
    run, adaptation = job.run, job.adaptation
    yield from adaptation.notes
    if run.recipe.train.shard_base and not run.team.in_step:
        yield "train.shard_base: there is one process, which keeps the base whole"
    for row in adaptation.targets:
        yield f"target {row.pattern}: {row.modules} modules, {row.share:.1%} of all matrices"
    shares = matrix_shares(adaptation, run.recipe)
    if shares["sentence"]:
        yield (
            f"matrices: {shares['adapted']:.1%} adapted, {shares['quantized']:.1%} in few bits; {shares['sentence']}"
        )
    if run.tasks:
        begins = [1, *(end + 1 for end in run.tasks.values())]
        parts = (
            f"{name} in steps {a} to {b}" for a, (name, b) in zip(begins, run.tasks.items(), strict=False)
        )
        yield f"tasks in turn: {', '.join(parts)}; all are scored before the first and after each"
    yield f"{trainable:,} trainable parameters, {run.total_steps} steps, in {job.folder.path}"
    yield from _of_several(run)
    if _rounds_every_step(run):
        yield (
            f"trainable.update: base weights train in {run.recipe.model.dtype}, where a step of less than 0.2 % of a "
            "weight is rounded away; write master or stochastic to keep such steps"
        )


def _of_several(run: Run) -> Iterator[str]:
    """What an optimizer of matrices does not take for such: the tensors that hold those of all experts."""
    method = run.recipe.optimizer.method
    several = count(info.param for info in run.parameters if info.role == "matrices")
    if several and OPTIMIZERS.get(method).matrix_wise:
        share = several / count(info.param for info in run.parameters)
        yield (
            f"optimizer: {share:.1%} of what trains holds several matrices in a tensor, which {method} moves as it "
            "does vectors; model.experts: split makes them single ones"
        )


def _rounds_every_step(run: Run) -> bool:
    coarse = any(not info.site and info.param.dtype != torch.float32 for info in run.parameters)
    return coarse and run.recipe.trainable.update == "in_place"
