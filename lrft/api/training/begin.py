"""What a training is made of: its rows, the adapted model, the job, and what it goes on from."""

from __future__ import annotations

from dataclasses import replace
from datetime import date
from typing import TYPE_CHECKING, Any

from torch import Tensor

from lrft.api.opening.same_start import check_same_start, check_same_text
from lrft.build.adapt import Adaptation, adapt
from lrft.build.dataset import read_text
from lrft.build.federation import assemble_federation
from lrft.build.identify import identify
from lrft.build.job import Job, assemble, subject
from lrft.build.offloading import Offloading
from lrft.build.recomputing import settle
from lrft.build.rounds import MakeReach
from lrft.build.scoring import probe_tasks
from lrft.build.steps import check_steps, possible_steps, train_data
from lrft.build.teacher import check_teacher_of
from lrft.build.text import Text, check_text
from lrft.core.notes import say
from lrft.evaluation.progress import EvaluationBar
from lrft.evaluation.subject import silent
from lrft.model.trained import trained_tensors
from lrft.recipe.resolved import recipe_hash
from lrft.recipe.schema import Recipe
from lrft.training.accountant import check_installed
from lrft.training.folder import RUN, RunFolder
from lrft.training.opened import OpenCheckpoint
from lrft.training.relied import plan_of
from lrft.training.replayed import check_replayed, is_record

if TYPE_CHECKING:
    from accelerate import Accelerator


def rows_of(folder: RunFolder, recipe: Recipe, accelerator: Accelerator, trust_remote_code: bool) -> Text:
    """The rows, from which the length of the run follows: what does not fit into it is refused before weights are read.

    Raises:
        MissingExtra: of a private recipe, Opacus is not installed.
        DataError, RecipeError: the rows cannot be trained on, or are too few steps for a setting.
    """
    if recipe.privacy is not None:
        check_installed()
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
    check_teacher_of(recipe, text, trust_remote_code)
    if recipe.federate is None:
        check_steps(recipe, possible_steps(recipe, text, accelerator.num_processes, folder.processes))
    return text


def begin(
    folder: RunFolder,
    recipe: Recipe,
    text: Text,
    saved: OpenCheckpoint | None,
    accelerator: Accelerator,
    trust_remote_code: bool,
    away: Offloading | None = None,
    reach: MakeReach | None = None,
) -> tuple[Job, dict[str, Tensor] | None]:
    """The job, on what the run began on, and the tensors of the checkpoint that it goes on from.

    Args:
        away: what the recipe keeps on a disk.
        reach: of a federation, what reaches its clients.
    """
    trained_on = identify(recipe, text)
    if folder.started:
        check_same_text(folder, saved, trained_on)
    tensors = None if saved is None else saved.tensors()
    planned = None if saved is None else plan_of(saved, folder)
    begun = (None, None) if saved is not None and is_record(saved) else (tensors, planned)
    adaptation = _adapted(recipe, text, *begun, accelerator, trust_remote_code, away)
    _settle_memory(folder, recipe, text, adaptation, accelerator, trust_remote_code, away)
    known = recipe_hash(recipe), trust_remote_code, replace(trained_on, base=adaptation.model.weight_sums)
    parts = recipe, folder, text, adaptation, accelerator, *known
    job = assemble(*parts, away) if recipe.federate is None else assemble_federation(*parts, reach)
    check_replayed(job.run, trained_tensors(adaptation.model))
    if folder.started:
        check_same_start(job, saved)
    probe_tasks(recipe, subject(recipe, text, adaptation.model, team=adaptation.team))
    return job, tensors


def _adapted(
    recipe: Recipe,
    text: Text,
    tensors: dict[str, Tensor] | None,
    planned: dict[str, Any] | None,
    accelerator: Accelerator,
    trust_remote_code: bool,
    away: Offloading | None,
) -> Adaptation:
    """The base with its adapter, every value of the base known; as planned where `tensors` of a checkpoint are."""
    with EvaluationBar() as show:
        return adapt(
            recipe,
            device=accelerator.device,
            trust_remote_code=trust_remote_code,
            text=text,
            saved=tensors,
            planned=planned,
            sums=True,
            progress=show if accelerator.is_main_process else silent,
            paged=None if away is None else away.weights,
        )


def _settle_memory(
    folder: RunFolder,
    recipe: Recipe,
    text: Text,
    adaptation: Adaptation,
    accelerator: Accelerator,
    trust_remote_code: bool,
    away: Offloading | None,
) -> None:
    """Settle which layers are computed again, the model in its place; those of before in a run that is gone on with."""
    processes, rank = accelerator.num_processes, accelerator.process_index
    data = train_data(recipe, text, processes, rank, adaptation.packing, adaptation.joined, folder.processes)
    before: int | None = folder.read(RUN).get("recomputed_layers") if folder.started else None
    settle(recipe, adaptation, data, accelerator.device, before, trust_remote_code)
    if away is not None:
        away.watch(adaptation.model, data.shapes(0))
        adaptation.notes.append(away.sentence())


def _today(recipe: Recipe, accelerator: Accelerator) -> str:
    """The day that templates are told, one for all processes though midnight may pass between them."""
    from accelerate.utils import broadcast_object_list

    day = [recipe.data.date or date.today().isoformat()]
    if accelerator.num_processes > 1:
        broadcast_object_list(day)
    return day[0]
