"""`lrft generate`: a run's answers to a file of prompts, in a file that a killed command goes on with."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import TypedDict

from lrft.api.opening.open_run import bare_base, check_base, open_run, sample_row
from lrft.build.scoring import subject
from lrft.core import stop
from lrft.core.team import Team
from lrft.data.features import Features, placed_features
from lrft.data.prompts import Asker, read_prompts
from lrft.data.rows import Rows, placed
from lrft.evaluation.answering import Given, answer_all
from lrft.evaluation.answers_file import AnswersFile
from lrft.evaluation.sampling import Sampling, check_new_tokens
from lrft.evaluation.subject import Progress, Subject
from lrft.registry.errors import DataError, LrftError
from lrft.registry.json import Json
from lrft.training.folder import RunFolder, find


class Generated(TypedDict):
    """What a call did.

    Attributes:
        rows: in the file now; `before` of them were there, and `unstopped` of the new ones reached `max_new_tokens`.
    """

    out: str
    rows: int
    before: int
    unstopped: int


def generate_answers(
    run: RunFolder | Path | str | None,
    prompts: Path | str,
    out: Path | str,
    sampling: Sampling | None = None,
    max_new_tokens: int = 256,
    base: bool = False,
    progress: Progress | None = None,
    trust_remote_code: bool = False,
) -> Generated:
    """Answer every prompt of a file; a line of `out` holds `row`, `prompt`, `output`, `tokens` and `stopped`.

    Called again after a kill it goes on where the file ends. Processes that a launcher started share the batches.

    Args:
        run: a run folder, its path or name under runs/, or one of its checkpoints; None is the latest run.
        prompts: a .txt, a prompt a line, or rows as `data` reads them (`lrft.data.prompts`).
        out: a .jsonl file; what it was made with is in a file beside it, and something else is not appended to.
        sampling: greedy without it.
        base: answer with the bare base model.
        progress: hears (what, done, total).
        trust_remote_code: let code run that comes with the base model.

    Raises:
        DataError: a prompt cannot be asked, by file and line; nothing was generated.
        UsageError: `out` holds other answers.
    """
    file = AnswersFile(Path(out))

    def kept() -> str:
        there = f"{file.written} answers are in {out}" if file.written else "no answer was written"
        return f"{there}; the same command goes on"

    with stop.listening(kept):
        folder = find(run)
        folder.trusted = trust_remote_code
        return _answer(folder, Path(prompts), file, sampling or Sampling(), max_new_tokens, base, progress)


def _answer(
    folder: RunFolder,
    prompts: Path,
    file: AnswersFile,
    sampling: Sampling,
    max_new_tokens: int,
    base: bool,
    progress: Progress | None,
) -> Generated:
    sampling.check()
    check_new_tokens(max_new_tokens)
    recipe, text, adaptation = open_run(folder)
    assert folder.opened is not None, "open_run opens one"
    if base:
        check_base(recipe, adaptation.model, "--base")
    team = adaptation.team
    asker = Asker(text.renderer, sample_row(recipe, text))
    rows, ids = _ids(prompts, asker)
    features = None if base else placed_features(rows, text.renderer.features)
    target = subject(recipe, text, adaptation.model, progress if team.rank == 0 else None, team)
    about: dict[str, Json] = {
        "run": folder.path.name,
        "checkpoint": folder.opened.path.name,
        "checkpoint_sha256": folder.opened.manifest_sha256,
        "model": "base" if base else "adapter",
        "prompts_sha256": hashlib.sha256(
            repr([ids, features] if any(features or ()) else ids).encode()
        ).hexdigest(),
        "max_new_tokens": max_new_tokens,
        "sampling": asdict(sampling),
        "stop_ids": sorted(target.stop_ids),
        "batch_tokens": target.batch_tokens,
    }
    with bare_base(recipe, folder, adaptation.model) if base else nullcontext():
        return write_answers(target, rows, ids, file, about, max_new_tokens, sampling, features)


def _ids(path: Path, asker: Asker) -> tuple[Rows, list[list[int]]]:
    rows, examples = read_prompts(path, asker)
    found = []
    for index, example in enumerate(examples):
        stop.poll()
        with placed(rows, index):
            found.append(asker.ids(example))
        if not found[-1]:
            raise DataError(f"{rows.where(index)}: the prompt has no token; give it a text")
    return rows, found


def write_answers(
    subject: Subject,
    rows: Rows,
    ids: list[list[int]],
    file: AnswersFile,
    about: Mapping[str, Json],
    max_new_tokens: int,
    sampling: Sampling,
    features: list[Features] | None,
) -> Generated:
    """Answer every prompt into a file, from where that ends.

    Args:
        rows, ids: what each prompt is of, and its tokens.
        about: what decides the answers; a file of other answers is refused.
    """
    leads = subject.team.rank == 0
    fault: LrftError | None = None
    try:
        if leads:
            with stop.held():
                file.open(about, len(ids))
    except LrftError as error:
        fault = error
    try:
        done = _agree(subject.team, file.done, fault)
        unstopped = 0
        for answers in answer_all(subject, ids, max_new_tokens, sampling, done, rows.where, features):
            unstopped += sum(not one.stopped for one in answers)
            if leads:
                with stop.held():
                    file.append([_line(subject, rows, ids, one) for one in answers])
    finally:
        file.close()
    return {"out": str(file.path), "rows": len(ids), "before": done, "unstopped": unstopped}


def _agree(team: Team, done: int, fault: LrftError | None) -> int:
    """How many lines the first process found, which alone has the file open; its failure is that of all."""
    found, failure = team.gather((done, None if fault is None else (type(fault), str(fault))))[0]
    if failure is not None:
        raise fault or failure[0](failure[1])
    return found


def _line(subject: Subject, rows: Rows, ids: list[list[int]], answer: Given) -> dict[str, Json]:
    row = rows[answer.row]
    return {
        "row": answer.row,
        **({"id": row["id"]} if "id" in row else {}),
        "prompt": str(subject.tokenizer.decode(ids[answer.row])),
        "output": subject.decode(answer.tokens),
        "tokens": len(answer.tokens),
        "stopped": answer.stopped,
    }
