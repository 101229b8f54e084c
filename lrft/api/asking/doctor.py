"""`lrft doctor`: is a folder whole, does it say to a server what training saw, and what to type next."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypedDict

from lrft.api.asking.doctor_run import check_run
from lrft.api.asking.what_next import has_plain_form, how_to_load, how_to_serve, typed
from lrft.api.opening.compared import as_trained
from lrft.build.dataset import read_text
from lrft.export.card import base_told
from lrft.export.checks import Check, check
from lrft.export.conversation import as_messages
from lrft.export.folder_checks import (
    check_adapter,
    check_fidelity,
    check_index,
    check_sums,
    check_tensors,
    read_record,
)
from lrft.export.heard import MODEL, hear
from lrft.export.plain_form import CONFIG
from lrft.export.record import RECORD, Exported
from lrft.export.targets import VLLM
from lrft.export.vllm_form import check_folder
from lrft.registry.errors import CheckpointError, DamagedFile, LrftError, UsageError
from lrft.training.folder import RECIPE, RESULT, RUN, RunFolder
from lrft.training.relied import own_recipe


class Diagnosis(TypedDict):
    """What was looked at, what was found, what a check cannot say, and what to type next."""

    folder: str
    kind: str
    checks: list[Check]
    told: list[str]
    next: list[str]


def diagnose(folder: Path | str, trust_remote_code: bool = False) -> Diagnosis:
    """Look at a run folder, an adapter, a merged or an exported folder.

    Args:
        trust_remote_code: let code run that comes with a run's base model.

    Raises:
        UsageError: it is none of these.
    """
    path = Path(folder)
    found: Diagnosis = {"folder": str(path), "kind": "", "checks": [], "told": [], "next": []}
    for kind, is_it, look in KINDS:
        if path.is_dir() and is_it(path):
            found["kind"] = kind
            try:
                look(path, found, trust_remote_code)
            except LrftError as error:
                found["checks"].append(check("its files can be read", [error]))
            except Exception as error:  # whatever is made of what a stranger wrote
                found["checks"].append(check("its files can be read", [f"{type(error).__name__}: {error}"]))
            return found
    raise UsageError(
        f"{path}: is no run folder, no adapter, and nothing that `lrft merge` or `lrft export` wrote"
    )


def judge(found: Diagnosis) -> None:
    """Refuse a folder that something is wrong with.

    Raises:
        CheckpointError: says how much.
    """
    wrong = [one for one in found["checks"] if not one["passed"]]
    if wrong:
        first = f"{wrong[0]['check']}: {wrong[0]['found']}"
        raise CheckpointError(
            f"{found['folder']}: {len(wrong)} of {len(found['checks'])} checks failed; {first}"
        )


def _run(path: Path, found: Diagnosis, trusted: bool) -> None:
    folder = RunFolder(path)
    checks, told, then = check_run(folder)
    found["checks"] += checks
    found["told"] += told
    found["next"] += then
    if any(not one["passed"] for one in checks):
        return
    recipe = own_recipe(path).recipe
    if not folder.has(RESULT):
        found["told"].append("the run has not finished")
        found["next"].append(f"lrft train {typed(path / RECIPE)} --out {typed(path)} --resume")
    if not folder.adapter.is_dir():
        return
    _look_at_adapter(folder.adapter, found)
    try:
        text = read_text(recipe, training=False, trust_remote_code=trusted, today=folder.day)
    except LrftError as error:
        found["told"].append(f"what training saw cannot be rendered any more ({error})")
    else:
        seen = as_trained(recipe, text)
        found["checks"] += hear(folder.adapter, seen["conversation"], seen.get("stops"), trusted)
    found["told"] += base_told(recipe)
    found["next"] += [
        f"lrft eval {typed(path)}",
        f"lrft merge {typed(path)} --out model",
        *(
            [f"lrft export {typed(path)} --for {VLLM} --out served"]
            if has_plain_form(recipe, folder.adapter)
            else []
        ),
    ]


def _exported(path: Path, found: Diagnosis, _: bool) -> None:
    record = read_record(path)
    assert record is not None
    found["kind"] = f"exported for {record['target']}"
    found["checks"] += [*check_sums(path, record), *check_fidelity(record)]
    if (path / CONFIG).is_file():
        _look_at_adapter(path, found)
    if record["target"] == VLLM:
        found["checks"] += check_folder(path)
    found["checks"] += hear(path, as_messages(record["conversation"]), record.get("stops"))
    found["told"] += record["told"]
    found["next"].append(how_to_serve(path, record))


def _adapter(path: Path, found: Diagnosis, _: bool) -> None:
    _look_at_adapter(path, found)
    found["told"].append(
        "the folder does not say what training saw, so no conversation was compared; name the run folder"
    )


def _merged(path: Path, found: Diagnosis, trusted: bool) -> None:
    record = read_record(path)
    if any(path.glob("*.safetensors")):
        found["checks"] += [*check_index(path), *check_tensors(path)]
    if record is None:
        found["kind"] = "model"
        found["told"].append(
            f"there is no {RECORD}, so nothing says what it was made from, what training saw and where it stops"
        )
    else:
        _compare_with_run(path, record, found, trusted)
    found["next"].append(how_to_load(path))


def _compare_with_run(path: Path, record: Exported, found: Diagnosis, trusted: bool) -> None:
    """A merged model beside what its record keeps of its run."""
    if record.get("files"):
        found["checks"] += check_sums(path, record)
    found["checks"] += check_fidelity(record)
    generation: Mapping[str, Any] = dict(record).get("generation") or {}  # type: ignore[assignment]
    if generation:
        wrong = [] if generation.get("agrees", True) else [f"see generation in {RECORD}"]
        found["checks"].append(check("it stopped where the run does when it was written", wrong))
    if record.get("conversation"):
        found["checks"] += hear(path, as_messages(record["conversation"]), record.get("stops"), trusted)
    else:
        found["told"].append(
            f"{RECORD} does not say what training saw, so no conversation was compared; merge again for that"
        )


def _look_at_adapter(path: Path, found: Diagnosis) -> None:
    found["checks"] += check_tensors(path)
    if not (path / CONFIG).is_file():
        found["told"].append(
            f"{path.name}/ has lrft's own form, which other programs do not load; `lrft export` writes others"
        )
        return
    checks, told = check_adapter(path)
    found["checks"] += checks
    found["told"] += told


def _is_exported(path: Path) -> bool:
    try:
        record = read_record(path)
    except (
        DamagedFile
    ):  # is looked at as what an export wrote, which then says it; of a model by its own kind
        return not (path / "config.json").is_file()
    return record is not None and "target" in record


def _is_merged(path: Path) -> bool:
    if (path / "config.json").is_file():
        return any(path.glob("*.safetensors"))
    return (path / MODEL).is_file() and (path / RECORD).is_file()


KINDS: list[tuple[str, Callable[[Path], bool], Callable[[Path, Diagnosis, bool], None]]] = [
    ("run", lambda path: RunFolder(path).has(RUN) or (path / "checkpoints").is_dir(), _run),
    ("exported", _is_exported, _exported),
    (
        "adapter",
        lambda path: any((path / name).is_file() for name in (CONFIG, "adapter.safetensors")),
        _adapter,
    ),
    ("merged", _is_merged, _merged),
]
