"""`lrft train`: a recipe to its end in a run folder, from the start or from where it stopped."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from datetime import date
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from lrft.api.memory import memory_advice
from lrft.build.adapt import adapt
from lrft.build.dataset import Text, check_steps, check_text, possible_steps, read_text, silent
from lrft.build.job import Job, assemble
from lrft.build.measure import matrix_shares
from lrft.core.notes import say
from lrft.core.params import count
from lrft.core.run import Run
from lrft.evaluation.progress import EvaluationBar
from lrft.export.peft_format import adapter_files, why_own_form, write_adapter_folder
from lrft.model.stopping import trained_generation
from lrft.model.trained import load_trained_tensors
from lrft.recipe.load import LoadedRecipe, as_loaded, load_recipe
from lrft.recipe.resolved import compare, recipe_hash, resolved
from lrft.recipe.schema import Recipe
from lrft.registry.errors import UsageError
from lrft.registry.json import Json
from lrft.training import checkpoint
from lrft.training import folder as run_folder
from lrft.training.device import make_accelerator
from lrft.training.folder import METRICS, PLAN, RECIPE, RESULT, RUN, RunFolder
from lrft.training.keepers import Scorer
from lrft.training.loop import train_steps
from lrft.training.metrics import peak_memory

if TYPE_CHECKING:
    from accelerate import Accelerator

# Sections that change where numbers go, not what they are; a resumed run may change them.
FREE_TO_CHANGE = ("logging", "export", "eval")


def train(
    recipe: LoadedRecipe | Path | str,
    out: Path | str | None = None,
    resume: bool = False,
    trust_remote_code: bool = False,
    *,
    overrides: Sequence[str] = (),
) -> dict[str, Json]:
    """Train a recipe to its end in a run folder and write the adapter; returns what result.json holds.

    Args:
        recipe: a loaded one, a file, or the name of a packaged one.
        out: the run folder; by default a new one under runs/, or with `resume` the latest of this recipe.
        resume: go on with the run that is there.
        overrides: `key.sub=value` sets, `~key.sub` deletes; of a recipe that is not loaded yet.

    Raises:
        RecipeError: the recipe is not valid.
        UsageError: the folder holds a run and `resume` was not asked for, or the recipe changed since.
        DataError, NumericalError, Interrupted, CheckpointError: see `lrft.registry.errors`.
    """
    loaded = as_loaded(recipe, overrides)
    accelerator = make_accelerator(loaded.recipe.train.device, loaded.recipe.model.dtype)
    folder = _claim(loaded, None if out is None else Path(out), resume, lead=accelerator.is_main_process)
    try:
        return _train_in(folder, loaded, accelerator, trust_remote_code)
    finally:
        folder.unlock()


def _train_in(
    folder: RunFolder, loaded: LoadedRecipe, accelerator: Accelerator, trust_remote_code: bool
) -> dict[str, Json]:
    recipe, lead = loaded.recipe, accelerator.is_main_process
    if (done := _finished(folder)) is not None:
        if lead:
            say(f"{folder.path}: already complete at step {done['step']}; nothing to do")
        return done if lead else {}
    began = time.perf_counter()
    text = _rows(folder, recipe, accelerator, trust_remote_code)
    saved = checkpoint.newest(folder.checkpoints, say)
    tensors = None if saved is None else checkpoint.read_adapter(saved)
    with memory_advice(recipe):
        with EvaluationBar() as show:
            adaptation = adapt(
                recipe,
                device=accelerator.device,
                trust_remote_code=trust_remote_code,
                text=text,
                saved=tensors,
                planned=None if tensors is None else folder.read(PLAN),
                progress=show if lead else silent,
            )
        job = assemble(recipe, folder, text, adaptation, accelerator, recipe_hash(recipe), trust_remote_code)
        if folder.started:
            _same_start(job)
        accelerator.wait_for_everyone()  # all have looked before anything is written
        if lead:
            _open(job, loaded, trust_remote_code)
        if saved is not None and tensors is not None:
            _resume(job, saved, tensors)
        try:
            train_steps(job.run, job.steps(), job.objective)
        finally:
            for callback in job.run.callbacks:
                callback.close()
    accelerator.wait_for_everyone()
    return _close(job, time.perf_counter() - began) if lead else {}


def _rows(folder: RunFolder, recipe: Recipe, accelerator: Accelerator, trust_remote_code: bool) -> Text:
    """The rows, from which the length of the run follows: what does not fit into it is refused before weights are read.

    Raises:
        DataError, RecipeError: the rows cannot be trained on, or are too few steps for a setting.
    """
    lead = accelerator.is_main_process
    with EvaluationBar() as show:
        text = read_text(
            recipe,
            trust_remote_code=trust_remote_code,
            progress=show if lead else silent,
            today=folder.day if folder.started else _today(recipe, accelerator),
        )
    if lead:
        say("; ".join(f"{label} {value}" for label, value in text.facts()))
    check_text(text, recipe)
    check_steps(recipe, possible_steps(recipe, text, accelerator.num_processes, accelerator.process_index))
    return text


def _today(recipe: Recipe, accelerator: Accelerator) -> str:
    """The day that templates are told, one for all processes though midnight may pass between them."""
    from accelerate.utils import broadcast_object_list

    day = [recipe.data.date or date.today().isoformat()]
    if accelerator.num_processes > 1:
        broadcast_object_list(day)
    return day[0]


def _claim(loaded: LoadedRecipe, out: Path | None, resume: bool, lead: bool) -> RunFolder:
    """The folder to train in, locked."""
    path = out
    if path is None and resume:
        path = run_folder.latest(recipe_name=loaded.name)
        if path is None:
            say(f"--resume: no run of {loaded.name} under {run_folder.ROOT}/; starting a new one")
    folder = RunFolder(path or run_folder.new_folder(loaded.name))
    if out is not None and resume and not folder.started:
        say(f"--resume: no run in {out} yet; starting one")
    if folder.started and not resume:
        raise UsageError(
            f"--out {folder.path}: already holds a run; add --resume to continue it or give another folder"
        )
    if lead:
        folder.lock()
    if folder.started:
        _same_recipe(folder, loaded.recipe)
    return folder


def _same_recipe(folder: RunFolder, recipe: Recipe) -> None:
    before = load_recipe(folder.path / RECIPE, trained=True).recipe
    changes = [c for c in compare(before, recipe) if c[0].split(".")[0] not in FREE_TO_CHANGE]
    # What was true by default is now found out, and compared as such with the run's record.
    changes = [c for c in changes if c != ("train.packing", True, None)]
    if changes:
        lines = "\n".join(f"  {key}: {old!r} -> {new!r}" for key, old, new in changes)
        raise UsageError(
            f"{folder.path}: the recipe changed since this run began, so it cannot be resumed:\n{lines}"
        )


def _same_start(job: Job) -> None:
    """Refuse what no recipe shows: other rows in the same file, another number of processes, other base weights.

    Raises:
        UsageError: names what differs.
    """
    before = job.folder.read(RUN)
    now = {
        "data": job.text.fingerprints,
        "processes": job.run.processes,
        "base_fingerprint": job.identity.base,
        "packing": job.adaptation.packing,
    }
    asked = job.run.recipe.train.packing  # older runs, which recorded nothing, packed unless told otherwise
    before = {"packing": asked is not False, **before}
    said = {
        "data": "the rows of data.train or data.eval",
        "processes": "the number of processes",
        "packing": "whether rows are packed (train.packing)",
        "base_fingerprint": "the weights of model.name (another base model)",
    }
    for key, value in now.items():
        if before.get(key) != value:
            raise UsageError(
                f"{job.folder.path}: {said[key]} changed since this run began, so it cannot be resumed; put back "
                "what was there, or train in another --out"
            )


def _finished(folder: RunFolder) -> dict[str, Json] | None:
    if not (folder.path / RESULT).is_file() or not folder.adapter.is_dir():
        return None
    result: dict[str, Json] = folder.read(RESULT)
    return result


def _open(job: Job, loaded: LoadedRecipe, trust_remote_code: bool) -> None:
    """Write what is known before step 1; the recipe last, since a folder with one counts as a run."""
    folder, run = job.folder, job.run
    folder.write(PLAN, {name: entry.record() for name, entry in job.adaptation.plan.items()})
    trainable = count(info.param for info in run.parameters)
    folder.write(
        RUN,
        {
            "recipe_name": loaded.name,
            "recipe_hash": job.identity.recipe,
            "base_fingerprint": job.identity.base,
            "data": job.text.fingerprints,
            "gate": job.text.record(),
            "date": job.text.renderer.today.isoformat(),
            "trainable": trainable,
            "total_steps": run.total_steps,
            "seed": run.seed,
            "attention": job.adaptation.model.attention,
            "packing": job.adaptation.packing,
            "matrices": matrix_shares(job.adaptation, loaded.recipe),
            "processes": run.processes,
            "trust_remote_code": trust_remote_code,
            **run_folder.environment(),
        },
    )
    folder.write(RECIPE, resolved(loaded.recipe))
    for note in job.adaptation.notes:
        say(note)
    for row in job.adaptation.targets:
        say(f"target {row.pattern}: {row.modules} linear layers, {row.share:.1%} of all matrices")
    shares = matrix_shares(job.adaptation, loaded.recipe)
    if shares["sentence"]:
        say(
            f"matrices: {shares['adapted']:.1%} adapted, {shares['quantized']:.1%} in few bits; {shares['sentence']}"
        )
    say(f"{trainable:,} trainable parameters, {run.total_steps} steps, in {folder.path}")
    if _rounds_every_step(run):
        say(
            f"trainable.update: base weights train in {run.recipe.model.dtype}, where a step of less than 0.2 % of a "
            "weight is rounded away; write master or stochastic to keep such steps"
        )


def _rounds_every_step(run: Run) -> bool:
    coarse = any(not info.site and info.param.dtype != torch.float32 for info in run.parameters)
    return coarse and run.recipe.trainable.update == "in_place"


def _resume(job: Job, saved: Path, tensors: dict[str, Tensor]) -> None:
    checkpoint.check_identity(saved, job.identity)
    load_trained_tensors(job.adaptation.model, tensors)
    checkpoint.restore(job.run, saved)
    if job.folder.day is None:
        say(
            "this run began with an earlier version, which encoded some rows and drew dropout otherwise; the steps "
            "from here on are not those that it would have taken"
        )
    say(f"resuming after step {job.run.step} of {job.run.total_steps}")


def _close(job: Job, seconds: float) -> dict[str, Json]:
    """Write the adapter folder and result.json."""
    run, folder = job.run, job.folder
    result: dict[str, Json] = {
        "step": run.step,
        "loss": run.metrics.get("loss"),
        "trainable": count(info.param for info in run.parameters),
        "seconds": round(seconds, 1),
        "peak_memory_bytes": peak_memory(),
        "name": folder.path.name,
    }
    result |= run.summary
    scorer = next((c for c in run.callbacks if isinstance(c, Scorer)), None)
    if scorer is not None and scorer.best_step:
        result |= {"best_eval_loss": scorer.best, "best_checkpoint": f"checkpoints/step-{scorer.best_step}"}
    if result["loss"] is None:  # resumed after the last step: the numbers stand in the record
        result["loss"] = _last_loss(folder)
    files = adapter_files(job.adaptation.model, run.recipe, result)
    if "adapter_config.json" not in files:
        say(f"adapter/ has lrft's own form: {why_own_form(job.adaptation.model, run.recipe)}")
    files["recipe.yaml"] = (folder.path / RECIPE).read_bytes()
    text, own = job.text, run.recipe.model.tokenizer is not None
    generation, _ = trained_generation(
        job.adaptation.model.hf, text.tokenizer, text.stop_ids, text.pad_id, own
    )
    files["generation_config.json"] = generation.to_json_string().encode()
    write_adapter_folder(folder.adapter, files, job.text.tokenizer)
    folder.write(RESULT, result)
    return result


def _last_loss(folder: RunFolder) -> float | None:
    lines = (folder.path / METRICS).read_text().splitlines()
    loss: float | None = json.loads(lines[-1])["loss"] if lines else None
    return loss
