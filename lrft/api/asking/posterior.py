"""`lrft posterior`: a Gaussian over a finished run's factors, kept in its folder, and what `lrft eval` makes of it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TypedDict

from torch import Tensor

from lrft.api.asking.learnt_rows import learnt_rows, tell_unseen
from lrft.api.asking.posterior_folder import read_posterior, read_record, write_posterior
from lrft.api.opening.open_run import Opened, open_checkpoint
from lrft.build.scoring import subject
from lrft.core import stop
from lrft.evaluation.choices import Choice, choices_of, task_of
from lrft.evaluation.pairs import LAYERS, Pair, trained_pairs
from lrft.evaluation.posterior import Posterior, fit, probabilities
from lrft.evaluation.probabilities import BINS, probability_scores
from lrft.evaluation.report import write_report
from lrft.evaluation.run import describe, scored_as
from lrft.evaluation.subject import EvaluationStopped, Progress, Subject
from lrft.evaluation.tasks._task import TaskResult
from lrft.ops.laplace import SAMPLES, STEPS
from lrft.recipe.schema import Recipe
from lrft.registry.errors import UsageError
from lrft.registry.json import Json
from lrft.training.chosen import find_checkpoint
from lrft.training.folder import RunFolder

VERSION = "laplace-1"
TASK = "one_token_choice"


class Fitted(TypedDict):
    """What a call did: posterior.json, and where it is."""

    folder: str
    checkpoint: str
    layers: str
    sites: int
    parameters: int
    rows: int
    temperature: float
    prior_precision: float
    log_evidence: float
    tried: list[dict[str, float]]


def fit_posterior(
    run: RunFolder | Path | str | None = None,
    *,
    layers: str = "all",
    rank: int = 10,
    above: int = 512,
    temperatures: Sequence[float] = (1.0,),
    steps: int = STEPS,
    limit: int | None = None,
    progress: Progress | None = None,
    checkpoint: str | None = None,
    trust_remote_code: bool = False,
) -> Fitted:
    """Measure the posterior of a run's factors on the rows it was trained on, and write `posterior/` in its folder.

    Args:
        run: a run folder, its path or name under runs/, or one of its checkpoints; by default the latest run.
        layers: `all` sites, or those of the `last` layer that has any.
        rank, above: factors of curvature with sides of `above` numbers or more keep `rank` eigenpairs.
        temperatures: of the likelihood; the one of largest evidence is kept.
        steps: of Adam, for the prior's precision.
        limit: only the first so many training rows.
        progress: hears (what, done, total).
        checkpoint: `best`, `last` or `step-N`; by default the newest.
        trust_remote_code: let code run that comes with the base model.

    Raises:
        UsageError: the run has more than low-rank factors, or a setting means nothing.
        DataError: a training row is no multiple choice that one token decides, or the rows are others by now.
    """
    _check(layers, temperatures)
    with stop.listening("no posterior was written; the same command measures all of it"):
        folder = find_checkpoint(run, checkpoint)
        folder.trusted = trust_remote_code
        opened, target, pairs = _opened(folder, layers, progress)
        rows = learnt_rows(folder, opened.recipe).first(limit)
        choices = choices_of(target, rows, task_of(()).renderer(target))  # in the format they were learnt in
        tell_unseen(folder, opened.checkpoint)
        with _telling("no posterior was written"):
            found = fit(
                target,
                pairs,
                choices,
                temperatures=temperatures,
                rank=rank,
                above=above,
                steps=steps,
                tokens=_tokens(opened.recipe),
            )
        about: dict[str, Json] = {
            "checkpoint": opened.checkpoint,
            "checkpoint_sha256": _sum(folder),
            "layers": layers,
            "rank": rank,
            "above": above,
            "rows_fingerprint": rows.fingerprint,
            "limit": limit,
        }
        with stop.held():
            path = write_posterior(folder.path, found, about)
    return _fitted(path, opened.checkpoint, layers, len(pairs), found)


def score_posterior(
    run: RunFolder | Path | str | None = None,
    limit: int | None = None,
    progress: Progress | None = None,
    checkpoint: str | None = None,
    trust_remote_code: bool = False,
    samples: int = SAMPLES,
) -> dict[str, dict[str, TaskResult]]:
    """Score held-out multiple-choice rows by the adapter's own probabilities, and by those of its posterior.

    The report is `eval/posterior.json`; the result is label -> task -> result, as `evaluate` gives it.

    Raises:
        UsageError: the run has no posterior, or one of another checkpoint.
        DataError: a row is no multiple choice that one token decides.
    """
    with stop.listening("nothing was scored; the same command scores all of it"):
        folder = find_checkpoint(run, checkpoint)
        folder.trusted = trust_remote_code
        record = read_record(folder.path)
        opened, target, pairs = _opened(folder, str(record["layers"]), progress)
        if record["checkpoint_sha256"] != _sum(folder):
            raise UsageError(
                f"--posterior: the one of {folder.path} is of {record['checkpoint']}, and {opened.checkpoint} is "
                f"scored; write --checkpoint {record['checkpoint']}, or lrft posterior {folder.path}"
            )
        posterior = read_posterior(folder.path, record, pairs)
        task = task_of(opened.recipe.eval.tasks)
        limit = limit or opened.recipe.eval.limit
        rows = task.rows(target, limit)
        choices = choices_of(target, rows, task.renderer(target))
        with _telling("nothing was scored"):
            before, after = probabilities(target, pairs, choices, posterior, samples, _tokens(opened.recipe))
        chosen = {
            **asdict(posterior.chosen),
            "samples_drawn": samples,
            "ece_bins": BINS,
            "layers": record["layers"],
        }

        def result(found: Sequence[Tensor]) -> TaskResult:
            scores = probability_scores(found, [one.gold for one in choices])
            shown = [_sample(one, p) for one, p in zip(choices, found, strict=True)]
            made = task.result(target, rows, scores, shown, **chosen)
            return TaskResult(made.metrics, made.n, made.samples, VERSION, made.settings)

        results = {"adapter": result(before), "posterior": result(after)}
        about = {**describe(target), **scored_as(opened.checkpoint, limit, opened.trained_on.sums())}
        with stop.held():
            write_report(folder.path, "posterior", results, about)
    return {label: {TASK: found} for label, found in results.items()}


def _fitted(path: Path, checkpoint: str, layers: str, sites: int, found: Posterior) -> Fitted:
    return {
        "folder": str(path),
        "checkpoint": checkpoint,
        "layers": layers,
        "sites": sites,
        "parameters": found.parameters,
        "rows": found.rows,
        "temperature": found.chosen.temperature,
        "prior_precision": found.chosen.prior_precision,
        "log_evidence": found.chosen.log_evidence,
        "tried": [asdict(one) for one in found.tried],
    }


@contextmanager
def _telling(kept: str) -> Iterator[None]:
    try:
        yield
    except EvaluationStopped as stopped:
        raise stopped.telling(f"{kept}; the same command does all of it", None) from None


def _check(layers: str, temperatures: Sequence[float]) -> None:
    if layers not in LAYERS:
        raise UsageError(f"--layers {layers}: write {' or '.join(LAYERS)}")
    if not temperatures or not all(0 < one < float("inf") for one in temperatures):
        raise UsageError("--temperature: write positive numbers, with commas between")


def _opened(folder: RunFolder, layers: str, progress: Progress | None) -> tuple[Opened, Subject, list[Pair]]:
    opened = open_checkpoint(folder)
    adaptation = opened.adaptation
    if adaptation.team.size > 1:
        raise UsageError("a posterior is measured and scored by one process; leave the launcher out")
    try:
        pairs = trained_pairs(adaptation.model, layers)
    except UsageError as error:
        raise UsageError(f"{folder.path} can have no posterior: {error}") from None
    return opened, subject(opened.recipe, opened.text, adaptation.model, progress, adaptation.team), pairs


def _tokens(recipe: Recipe) -> int:
    """Of a batch: what a micro-batch of the training held, as a graph is kept here too."""
    return min(recipe.eval.batch_tokens, recipe.train.batch_size * recipe.train.max_length)


def _sum(folder: RunFolder) -> str:
    assert folder.opened is not None, "a checkpoint was opened"
    return folder.opened.manifest_sha256


def _sample(choice: Choice, p: Tensor) -> dict[str, Json]:
    pick = int(p.argmax())
    return {
        "output": choice.labels[pick],
        "reference": choice.labels[choice.gold],
        "correct": pick == choice.gold,
        "probabilities": dict(zip(choice.labels, p.tolist(), strict=True)),
    }
