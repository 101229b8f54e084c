"""Tasks of lm-evaluation-harness on the model as it stands, adapters and all."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from lrft.core import stop
from lrft.evaluation.batching import scoring
from lrft.evaluation.decoded import decoded
from lrft.evaluation.generate import batching_of
from lrft.evaluation.subject import Subject
from lrft.evaluation.tasks._task import TaskResult
from lrft.model.batching import stock_attention
from lrft.model.stopping import trained_generation
from lrft.registry.did_you_mean import did_you_mean
from lrft.registry.errors import LrftError, MissingExtra, UsageError, first_line
from lrft.registry.json import Json

if TYPE_CHECKING:
    from lm_eval.tasks import TaskManager

ROWS = 8  # of a batch, where the model takes padded ones
FILES = (".yaml", ".yml")
UNFILTERED = "none"


def harness_results(subject: Subject, tasks: Sequence[str], limit: int | None) -> dict[str, TaskResult]:
    """Score the subject on tasks of lm-eval, named as `lm_eval run --tasks` names them, or by the .yaml of one.

    The model stops, and its attention computes, as that of the merged folder does.

    Args:
        limit: only the first so many rows of each task.

    Raises:
        MissingExtra: lm-eval is not installed; the message holds the install line.
        UsageError: there is no such task, or lm-eval cannot run this model.
        LrftError: lm-eval failed.
    """
    _check(subject)
    try:
        import lm_eval
        from lm_eval.models.huggingface import HFLM
        from lm_eval.tasks import TaskManager
    except ImportError:
        raise MissingExtra(
            "--harness: tasks of lm-evaluation-harness need lm-eval; install it with `pip install 'lrft[eval]'`"
        ) from None
    manager = TaskManager(include_defaults=not all(map(_is_file, tasks)))
    _check_names(manager, tasks)
    with scoring(subject.model), _as_merged(subject), stock_attention(subject.hf), decoded(subject.hf):
        model = HFLM(
            pretrained=subject.hf, tokenizer=copy.deepcopy(subject.tokenizer), batch_size=_rows(subject)
        )
        try:
            with stop.at_once():
                found = lm_eval.simple_evaluate(
                    model, tasks=list(tasks), limit=limit, task_manager=manager, log_samples=False
                )
        except LrftError:
            raise
        except Exception as error:  # tasks are programs of others, and their data may not be to be had
            first = first_line(error, 300)
            raise LrftError(f"--harness {','.join(tasks)}: lm-eval failed ({first})") from error
    version = getattr(lm_eval, "__version__", "")
    return {name: _result(found, name, version, model.batch_size) for name in found["results"]}


def _check(subject: Subject) -> None:
    if subject.model.virtual_now:
        raise UsageError(
            "--harness: lm-eval does not know the virtual tokens that this adapter puts before every text; use --task"
        )
    subject.check_features(None, "--harness")
    if subject.team.size > 1:
        raise UsageError("--harness: lm-eval scores in one process; start it without a launcher")


def _check_names(manager: TaskManager, tasks: Sequence[str]) -> None:
    for task in tasks:
        if _is_file(task):
            if not Path(task).is_file():
                raise UsageError(f"--harness {task}: no such file")
        elif not manager.match_tasks([task]):
            raise UsageError(
                f"--harness {task}: lm-eval has no such task{did_you_mean(task, manager.all_tasks)}"
            )


def _is_file(task: str) -> bool:
    return task.endswith(FILES)


def _rows(subject: Subject) -> int:
    """Rows of a batch: one where padding changes what the model says, or where it generates nothing at all."""
    try:
        return ROWS if batching_of(subject) == "padded" else 1
    except UsageError:
        return 1


@contextmanager
def _as_merged(subject: Subject) -> Iterator[None]:
    """The generation settings that a merged folder has, and ties that nobody makes anew over what was trained."""
    hf = subject.hf
    before = hf.generation_config
    hf.generation_config, _ = trained_generation(hf, subject.tokenizer, subject.stop_ids, subject.pad_id)
    hf.__dict__["tie_weights"] = lambda *given, **named: None
    try:
        yield
    finally:
        del hf.__dict__["tie_weights"]
        hf.generation_config = before


def _result(found: Mapping[str, Mapping[str, Json]], name: str, version: str, rows: int) -> TaskResult:
    metrics: dict[str, float] = {}
    held = found["results"][name]
    assert isinstance(held, Mapping), "lm-eval gives a mapping for each task"
    for key, value in held.items():
        metric, comma, kept = key.partition(",")
        if comma and isinstance(value, int | float):
            stem, is_error = metric.removesuffix("_stderr"), metric.endswith("_stderr")
            whole = stem if kept == UNFILTERED else f"{stem} ({kept})"
            metrics[f"{whole}_stderr" if is_error else whole] = value
    settings: dict[str, Json] = {
        "harness": f"lm-eval {version}",
        "config": found.get("configs", {}).get(name),
        "n_shot": found.get("n-shot", {}).get(name),
        "batch_rows": rows,
    }
    task_version = found.get("versions", {}).get(name)
    return TaskResult(metrics, _count(found, name), [], f"lm-eval {version}, {name} {task_version}", settings)


def _count(found: Mapping[str, Mapping[str, Json]], name: str) -> int:
    """Rows that were scored; of a group those of its tasks."""
    counted = found.get("n-samples", {}).get(name)
    if isinstance(counted, Mapping) and isinstance(rows := counted.get("effective"), int):
        return rows
    below = found.get("group_subtasks", {}).get(name)
    children = below if isinstance(below, Sequence) and not isinstance(below, str) else ()
    return sum(_count(found, str(child)) for child in children)
