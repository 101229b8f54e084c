"""`lrft transfer`: an adapter moved to another base, through inputs that the new base writes and the old run answers.

Wang et al., "Trans-LoRA: towards Data-Free Transferable Parameter Efficient Finetuning", NeurIPS 2024, arXiv
2405.17258: a discriminator on the source learns real inputs from those that the source's base writes by a few seeds;
the target's base writes candidates by the same seeds; those that pass for real are answered by source and adapter,
and the target's adapter imitates that. The authors' code is not public, and of their settings only the seeds are known.
"""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from datetime import date
from functools import cached_property, partial
from pathlib import Path

from lrft.api.asking.augment import read_template
from lrft.api.transferring.acceptance import accepted, told_of
from lrft.api.transferring.bases import Candidate, base_of, pool, read_candidates, write_candidates
from lrft.api.transferring.folder import RESULT, Phases, as_lines
from lrft.api.transferring.judge import SCORES, check_judge, own_rows, score, train_judge
from lrft.api.transferring.pupil import ROWS, settle_imitation, train_target, write_outputs
from lrft.api.transferring.recipes import imitating, learning, target_recipe
from lrft.api.transferring.record import Asked, Judge, Pool, Transferred
from lrft.build.rows import made_format
from lrft.core import stop
from lrft.core.notes import say
from lrft.data.few_shot import FewShot
from lrft.data.rows import Rows
from lrft.data.sources import read_rows
from lrft.files.sums import file_sum
from lrft.files.write import write_file
from lrft.recipe.resolved import recipe_hash
from lrft.recipe.schema import Recipe
from lrft.registry.config import Source
from lrft.registry.errors import UsageError
from lrft.registry.json import Json
from lrft.training.chosen import open_chosen
from lrft.training.folder import RunFolder, find
from lrft.training.relied import own_recipe

SEEDS, TARGET = "seeds.jsonl", "target.jsonl"
LACKS = {
    "pairs",
    "labels",
    "judged",
    "passages",
    "documents",
}  # of formats, what has no input with one output


@dataclass(frozen=True)
class Parts:
    """What a transfer is between.

    Attributes:
        source: the recipe of the run.
        overrides: of the target's recipe, `to`.
        target: that, with the run's format and no rows yet.
    """

    folder: RunFolder
    source: Recipe
    to: str | Path
    overrides: Sequence[str]
    target: Recipe
    phases: Phases
    asked: Asked
    trusted: bool

    @property
    def rows_file(self) -> Path:
        """Where the rows will be that the target learns."""
        return self.phases.path.resolve() / ROWS

    @cached_property
    def rows(self) -> Rows:
        """Those that the run was trained on."""
        return own_rows(self.folder, self.source)


def transfer(
    run: Path | str,
    to: Path | str,
    out: Path | str,
    asked: Asked | None = None,
    *,
    overrides: Sequence[str] = (),
    trust_remote_code: bool = False,
) -> Transferred:
    """Move what a run learnt to the model of another recipe; called again after a kill it goes on where it was.

    Args:
        run: a run or one of its checkpoints, which answers.
        to: the recipe of the target; its rows are replaced by those that are written.
        out: a folder; the target's run is `run` in it.

    Raises:
        UsageError: the words mean nothing, the run has no inputs with outputs, or `out` holds something else.
        DataError: there is nothing real, nothing written, nothing accepted, or nothing answered.
        RecipeError: the target's recipe does not go with the run.
    """
    asked, path = asked or Asked(), Path(out)
    asked.check()

    def kept() -> str:
        return f"what is done is in {path}; the same command goes on"

    with stop.listening(kept):
        try:
            folder = find(run)
            folder.trusted = trust_remote_code
            source = _source(folder)
            target = target_recipe(to, overrides, source).recipe
            parts = Parts(folder, source, to, overrides, target, Phases(path), asked, trust_remote_code)
            return _through(parts)
        except stop.Stopped as stopped:  # the trainings within say how a training goes on
            stopped.kept = kept()
            raise


def _source(folder: RunFolder) -> Recipe:
    """The recipe of the run.

    Raises:
        UsageError: it is of no inputs with outputs.
    """
    recipe = own_recipe(folder.path).recipe
    kinds = made_format(recipe).provides & LACKS
    if recipe.model.head is not None or kinds:
        what = "model.head" if recipe.model.head is not None else f"{next(iter(kinds))}, data.format"
        raise UsageError(f"{folder.path}: learnt no outputs to inputs ({what}), which alone can be moved so")
    if recipe.data.features:
        raise UsageError(f"{folder.path}: goes by features of a row (data.features), which nobody writes")
    return recipe


def _through(parts: Parts) -> Transferred:
    """All phases, of which those that are over do nothing."""
    asked, phases, trusted = parts.asked, parts.phases, parts.trusted
    day = phases.claim(_about(parts), parts.target.data.date or date.today().isoformat())["day"]
    task = _task(parts)
    how = settle_imitation(parts.folder, parts.source, parts.target, task, asked, trusted)
    recipe = partial(target_recipe, parts.to, parts.overrides, parts.source)
    imitates = imitating(parts.target, how.teacher)
    recipe(imitates)  # what cannot be trained is refused before anything is generated
    judge, written = _judge(parts, task)
    found = _candidates(parts, task, base_of(parts.target, day))
    scores = score(phases, Path(judge["run"]), found, parts.source, trusted)
    inputs = accepted(phases, found, scores, asked.threshold)
    notes = list(told_of(how, len(inputs), pool(found)["inputs"]))
    for note in notes:
        say(note)
    outputs = write_outputs(phases, parts.folder, task, inputs, asked, trusted)
    run, rows, result = train_target(
        phases, lambda first: recipe([*imitates, *learning(parts.rows_file, first)]), trusted
    )
    record: Transferred = {
        "seeds": len(task.seeds),
        "discriminator": judge,
        "target": pool(found),
        "threshold": asked.threshold,
        "accepted": len(inputs),
        "acceptance": len(inputs) / pool(found)["inputs"],
        "imitated": how.name,
        "because": how.because,
        "outputs": outputs,
        "rows": rows,
        "run": run,
        "training": {name: result[name] for name in ("step", "loss", "trainable")},
        "notes": notes,
    }
    if written is not None:
        record["source"] = written
    write_file(phases.path / RESULT, json.dumps(record, indent=2) + "\n", f"--out {phases.path}: {RESULT}")
    return record


def _about(parts: Parts) -> dict[str, Json]:
    """What decides the result of a transfer."""
    asked = parts.asked
    with open_chosen(parts.folder) as saved:
        source = saved.manifest_sha256
    judge: Json = list(asked.judge)
    if asked.discriminator is not None:
        folder = find(asked.discriminator)
        check_judge(folder, parts.source)
        with open_chosen(folder) as saved:
            judge = saved.manifest_sha256
    return {
        "source": source,
        "target": recipe_hash(parts.target),
        "seeds": None if asked.seeds is None else file_sum(asked.seeds)["sha256"],
        "prompt": None if asked.prompt is None else file_sum(asked.prompt)["sha256"],
        "discriminator": judge,
        "sampling": asdict(asked.sampling),
        **{name: getattr(asked, name) for name in ("shots", "contrast", "candidates", "threshold", "match")},
        "max_new_tokens": asked.max_new_tokens,
    }


def _task(parts: Parts) -> FewShot:
    """The task by its seeds, which are drawn, or read, once and kept.

    Raises:
        DataError, UsageError: they do not show one.
    """
    asked, phases = parts.asked, parts.phases
    template = None if asked.prompt is None else read_template(asked.prompt)
    form = made_format(parts.source)
    if phases.is_over(SEEDS):
        return FewShot(form, phases.lines(SEEDS), template)
    if asked.seeds is not None:
        seeds = list(read_rows(Source(source=str(asked.seeds)), "train", 0, "--seeds"))
    else:
        draw = random.Random(f"{asked.sampling.seed}-seeds")
        seeds = [
            parts.rows[k] for k in draw.sample(range(len(parts.rows)), min(asked.shots, len(parts.rows)))
        ]
    task = FewShot(form, seeds, template)
    task.check()
    phases.end(SEEDS, as_lines(seeds))
    return task


def _judge(parts: Parts, task: FewShot) -> tuple[Judge, Pool | None]:
    """The discriminator that was given, or one that is trained; and what was written for that."""
    asked = parts.asked
    if asked.discriminator is not None:
        return {"run": str(asked.discriminator)}, None
    base = base_of(parts.source, parts.folder.day or "")
    return train_judge(parts.phases, base, task, parts.rows, asked, parts.trusted)


def _candidates(parts: Parts, task: FewShot, base: Recipe) -> list[Candidate]:
    """What the target's base writes, with draws of its own: where it is the source's too, other texts than those."""
    asked, file = parts.asked, parts.phases.path / TARGET
    sampling = replace(asked.sampling, seed=asked.sampling.seed + 1)
    how = task, file, asked.candidates, sampling
    if not parts.phases.is_over(SCORES):
        write_candidates(base, *how, asked, parts.trusted)
    return read_candidates(*how)
