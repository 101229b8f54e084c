"""The discriminator: trained on real inputs against written ones, asked how real candidates are."""

from __future__ import annotations

import hashlib
import math
import random
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import torch

from lrft.api.opening.open_run import open_model
from lrft.api.training.train import train
from lrft.api.transferring.bases import Candidate, pool, read_candidates, told, write_candidates
from lrft.api.transferring.folder import Phases, as_lines
from lrft.api.transferring.recipes import LABELS, REAL, WRITTEN, judge_recipe
from lrft.api.transferring.record import Asked, Judge, Pool
from lrft.build.dataset import read_renderer
from lrft.build.rows import training_rows
from lrft.core import stop
from lrft.data.collate import collate
from lrft.data.encode import encode_all
from lrft.data.few_shot import FewShot, folded
from lrft.data.rows import Rows, placed
from lrft.evaluation.answers_file import AnswersFile, Line
from lrft.evaluation.batching import scoring
from lrft.evaluation.progress import EvaluationBar
from lrft.evaluation.row_features import cut
from lrft.files.records import Record
from lrft.files.write import write_file
from lrft.recipe.load import load_recipe
from lrft.recipe.schema import Recipe
from lrft.registry.errors import DataError, NumericalError, UsageError
from lrft.registry.json import Json, to_section
from lrft.training.folder import RUN, RunFolder, find
from lrft.training.relied import own_recipe

JUDGE = "discriminator"
TEXTS, SCORES, SOURCE = f"{JUDGE}.jsonl", "scores.jsonl", "source.jsonl"


class ScoreLine(Line):
    """How probably a candidate is real."""

    score: float


def own_rows(folder: RunFolder, recipe: Recipe) -> Rows:
    """The rows that a run was trained on.

    Raises:
        DataError: they are not there any more, or are others.
    """
    try:
        rows = training_rows(recipe)
    except DataError as error:
        raise DataError(
            f"{error}; without the rows of {folder.path} give --seeds and --discriminator"
        ) from error
    if folder.read(RUN).get("data", {}).get("train") != rows.fingerprint:
        raise DataError(
            f"data.train: the rows of {folder.path} changed since it was trained; put back what was there, or give "
            "--seeds and --discriminator"
        )
    return rows


class TextLine(Record):
    """A line of what the discriminator learns."""

    text: str
    label: str


def train_judge(
    phases: Phases, base: Recipe, task: FewShot, rows: Rows, asked: Asked, trusted: bool
) -> tuple[Judge, Pool]:
    """The discriminator of a transfer, trained to its end, and what was written for it.

    Args:
        base: the model of the run, bare.
        rows: those that the run was trained on.

    Raises:
        DataError: nothing was written that it could learn from, or nothing is real but the seeds.
    """
    file = phases.path / SOURCE
    how = task, file, asked.contrast, asked.sampling
    if not phases.is_over(TEXTS):
        write_candidates(base, *how, asked, trusted)
        texts = _texts(task, read_candidates(*how), rows, asked)
        phases.end(TEXTS, as_lines(texts))
    kinds = Counter(line["label"] for line in phases.lines(TEXTS, TextLine))
    out, path = phases.path / JUDGE, phases.path / f"{JUDGE}.yaml"
    write_file(path, judge_recipe(base, asked.sampling.seed, phases.path.resolve() / TEXTS))
    result = train(load_recipe(path, asked.judge), out, RunFolder(out).started, trusted)
    scores = to_section(to_section(result.get("scores")).get("classification"))
    held = {name: float(value) for name, value in scores.items() if isinstance(value, int | float)}
    judge: Judge = {"run": str(out), "real": kinds[REAL], "written": kinds[WRITTEN], "held_out": held}
    return judge, pool(read_candidates(*how))


def _texts(task: FewShot, candidates: Sequence[Candidate], rows: Rows, asked: Asked) -> list[dict[str, Json]]:
    """What the discriminator trains on: written inputs, and as many real ones that are no seeds."""
    written = [one.text for one in candidates if not one.why]
    if not written:
        raise DataError(
            f"the model of the run wrote no input that the discriminator could learn from ({told(pool(candidates))}); "
            "raise --max-new-tokens, or ask otherwise with --prompt, in another folder"
        )
    known = {folded(task.text(row)) for row in task.seeds}
    real: list[str] = []
    for index in random.Random(f"{asked.sampling.seed}-real").sample(range(len(rows)), len(rows)):
        stop.poll()
        with placed(rows, index):
            text = task.text(rows[index])
        if folded(text) not in known and len(real) < len(written):
            known.add(folded(text))
            real.append(text)
    if not real:
        raise DataError("the run was trained on nothing but the seeds, so nothing real is left to learn from")
    pairs = [*((text, REAL) for text in real), *((text, WRITTEN) for text in written[: len(real)])]
    return [{"text": text, "label": label} for text, label in pairs]


def score(
    phases: Phases, judge: Path, candidates: Sequence[Candidate], source: Recipe, trusted: bool
) -> list[float | None]:
    """How probably every candidate is real, by the discriminator; None of one that is no input.

    Raises:
        UsageError: it is no discriminator, or of another model.
        DataError: there is nothing to score.
    """
    texts = [one.text for one in candidates if not one.why]
    if not texts:
        raise DataError(
            f"the target's model wrote no input ({told(pool(candidates))}); raise --max-new-tokens or --candidates, or "
            "ask otherwise with --prompt, in another folder"
        )
    file = AnswersFile(phases.path / SCORES, ScoreLine)
    if not phases.is_over(SCORES):
        _score(file, judge, texts, source, trusted)
        phases.end(SCORES)
    values = [float(line["score"]) for line in file.lines()]
    if len(values) != len(texts):
        raise UsageError(
            f"{file.path}: holds {len(values):,} scores of {len(texts):,} inputs; begin anew in another folder"
        )
    found = iter(values)
    return [None if one.why else next(found) for one in candidates]


@torch.no_grad()
def _score(file: AnswersFile, judge: Path, texts: Sequence[str], source: Recipe, trusted: bool) -> None:
    folder = find(judge)
    folder.trusted = trusted
    check_judge(folder, source)
    recipe, adaptation, _ = open_model(folder)
    model, text = adaptation.model, read_renderer(recipe, trusted)
    assert folder.opened is not None, "open_model opens one"
    form = text.renderer.format
    rows = Rows([{form.columns[0]: one, form.columns[-1]: REAL} for one in texts], "candidate", "")
    encoded = encode_all(rows, text.renderer)
    tokens, place = recipe.eval.batch_tokens, list(model.labels).index(REAL)
    about: dict[str, Json] = {
        "discriminator": folder.opened.manifest_sha256,
        "texts_sha256": hashlib.sha256(repr([row.input_ids for row in encoded]).encode()).hexdigest(),
        "batch_tokens": tokens,
    }
    try:
        with stop.held():
            file.open(about, len(texts))
        with scoring(model), EvaluationBar() as show:
            for part in cut(encoded, tokens, None):
                if part.stop <= file.written:
                    continue
                stop.poll()
                batch = collate([[encoded[k]] for k in part], text.pad_id, None, [[k] for k in part])
                real = model.scores(batch.to(model.device)).softmax(-1)[:, place].tolist()
                if not all(map(math.isfinite, real)):
                    raise NumericalError(
                        f"{folder.path}: a score is no finite number; train another discriminator"
                    )
                lines = [{"row": k, "score": one} for k, one in zip(part, real, strict=True)]
                with stop.held():
                    file.append(lines[max(file.written - part.start, 0) :])
                show("scoring candidates", part.stop, len(texts))
    finally:
        file.close()


def check_judge(folder: RunFolder, source: Recipe) -> None:
    """Refuse a run that is no discriminator of inputs of the model of `source`.

    Raises:
        UsageError: says what it is.
    """
    own = own_recipe(folder.path).recipe
    if own.model.head is None or set(own.model.head.labels) != set(LABELS):
        raise UsageError(
            f"--discriminator {folder.path}: tells no {REAL} texts from {WRITTEN} ones; name the {JUDGE} of a transfer"
        )
    if own.model.name != source.model.name:
        raise UsageError(
            f"--discriminator {folder.path}: is on {own.model.name}, and the run on {source.model.name}; name one of "
            "this run"
        )
