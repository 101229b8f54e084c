"""`lrft doctor`: is a folder whole, does it say to a server what training saw, and what to type next."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypedDict

from lrft.api.asking.doctor_run import check_run
from lrft.api.opening.compared import chats
from lrft.build.dataset import read_text
from lrft.export.checks import Check, check
from lrft.export.conversation import as_messages, render
from lrft.export.folder_checks import (
    check_adapter,
    check_fidelity,
    check_index,
    check_sums,
    check_tensors,
    read_record,
)
from lrft.export.heard import hear
from lrft.export.plain_form import CONFIG
from lrft.export.record import Exported
from lrft.export.targets import GGUF, OLLAMA, PLAIN, VLLM
from lrft.export.vllm_form import check_folder
from lrft.files.json import read_object
from lrft.files.records import ModelConfig
from lrft.recipe.embedding_clashes import embeds
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
        found["next"].append(f"lrft train {path / RECIPE} --out {path} --resume")
    if not folder.adapter.is_dir():
        return
    _look_at_adapter(folder.adapter, found)
    try:
        text = read_text(recipe, training=False, trust_remote_code=trusted, today=folder.day)
    except LrftError as error:
        found["told"].append(f"what training saw cannot be rendered any more ({error})")
    else:
        expected = render(text.renderer, chats(recipe, text))
        found["checks"] += hear(folder.adapter, expected, None, trusted)
    found["next"] += [
        f"lrft eval {path}",
        f"lrft merge {path} --out model",
        *(
            []
            if recipe.model.head is not None or embeds(recipe.objective.method)
            else [f"lrft export {path} --for {VLLM} --out served"]
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


def _merged(path: Path, found: Diagnosis, _: bool) -> None:
    record = read_record(path)
    found["checks"] += [*check_index(path), *check_tensors(path), *(check_fidelity(record) if record else [])]
    made = read_object(path / "config.json", ModelConfig, within=path).get("architectures") or []
    if any(name.endswith("ForSequenceClassification") for name in made):  # it generates nothing
        found["next"].append(
            f"transformers: AutoModelForSequenceClassification.from_pretrained({str(path)!r})"
        )
        return
    said: Mapping[str, Any] = {} if record is None else dict(record)
    agrees = said.get("generation", {}).get("agrees", True)
    found["checks"].append(
        check("it stops where the run does", [] if agrees else ["see generation in fidelity.json"])
    )
    found["next"].append(f"transformers: AutoModelForCausalLM.from_pretrained({str(path)!r})")


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


def how_to_serve(path: Path, record: Exported) -> str:
    """The line that serves an exported folder."""
    target, base, run = record["target"], record["base"], record["run"]
    if target == VLLM:
        flags = f"--enable-{PLAIN} --max-{PLAIN}-rank {record['rank']} --{PLAIN}-modules {run}={path}"
        return f"vllm serve {base} {flags}"
    if target == OLLAMA:
        return f"ollama create {run} -f {path / 'Modelfile'}"
    if target == GGUF and record.get("merged"):
        return f"llama-server -m {path / 'model.gguf'} --jinja"
    if target == GGUF:
        return f"llama-server -m BASE.gguf --{PLAIN} {path / 'adapter.gguf'} --jinja"
    return f"peft: PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained({base!r}), {str(path)!r})"


def _is_exported(path: Path) -> bool:
    try:
        record = read_record(path)
    except (
        DamagedFile
    ):  # is looked at as what an export wrote, which then says it; of a model by its own kind
        return not (path / "config.json").is_file()
    return record is not None and "target" in record


KINDS: list[tuple[str, Callable[[Path], bool], Callable[[Path, Diagnosis, bool], None]]] = [
    ("run", lambda path: RunFolder(path).has(RUN) or (path / "checkpoints").is_dir(), _run),
    ("exported", _is_exported, _exported),
    (
        "adapter",
        lambda path: any((path / name).is_file() for name in (CONFIG, "adapter.safetensors")),
        _adapter,
    ),
    ("merged", lambda path: (path / "config.json").is_file() and any(path.glob("*.safetensors")), _merged),
]
