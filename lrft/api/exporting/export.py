"""`lrft export`: a run's adapter in the form that another program loads, and how far it is from the run."""

from __future__ import annotations

from pathlib import Path

from lrft.api.exporting.form import Form, Options, PeftFolder, Source
from lrft.api.exporting.gguf import GgufFile, OllamaFolder
from lrft.api.exporting.plain import PlainFolder, VllmFolder
from lrft.api.opening.compared import as_trained, rows_to_compare
from lrft.api.opening.open_run import open_run
from lrft.core import stop
from lrft.core.notes import say
from lrft.data.eval_batches import eval_batches
from lrft.export.card import base_told, exported_card, recipe_to_share
from lrft.export.fidelity import Comparable, compare
from lrft.export.push import check_repository, push
from lrft.export.record import RECORD, Exported, sums
from lrft.export.scored import compare_scores, scores_of
from lrft.export.served import Served
from lrft.export.targets import GGUF, OF_TEXTS, OLLAMA, PEFT, PLAIN, TARGETS, VLLM
from lrft.export.write import check_free, whole_folder
from lrft.files.write import write_in
from lrft.model.origin import public_name
from lrft.model.units import hides_units
from lrft.registry.did_you_mean import did_you_mean
from lrft.registry.errors import ToleranceError, UsageError
from lrft.training.folder import RECIPE, RESULT, RunFolder, find
from lrft.training.run_manifest import text_of

FORMS: dict[str, type[Form]] = {
    PEFT: PeftFolder,
    PLAIN: PlainFolder,
    VLLM: VllmFolder,
    GGUF: GgufFile,
    OLLAMA: OllamaFolder,
}


def export(
    run: RunFolder | Path | str | None = None,
    target: str = "peft",
    out: Path | str = "exported",
    options: Options | None = None,
    push_to: str | None = None,
    public: bool = False,
    trust_remote_code: bool = False,
) -> Exported:
    """Write a run's adapter at `out` for another program; returns the record, also written there.

    Args:
        run: a run folder, its path or name under runs/, or one of its checkpoints; by default the latest run.
        target: one of `lrft.export.targets.TARGETS`.
        out: a new or an empty folder.
        push_to: OWNER/NAME on the hub, where the folder is uploaded to once it is found faithful.
        public: whether a repository that is made there can be read by all.
        trust_remote_code: let code run that comes with the base model.

    Raises:
        WriteError: the disk is full or not writable; nothing is left at `out`.
        UsageError: `out` is not free, or the form cannot say what was trained; names one that can.
        NotMergeable: the method is not a change of the weight, and the form knows nothing else.
        ToleranceError: what was written is further from the run than `export.tolerance`; files are kept.
    """
    if target not in TARGETS:
        raise UsageError(f"--for {target}: choose {', '.join(TARGETS)}{did_you_mean(target, TARGETS)}")
    options, out = options or Options(), Path(out)
    check_free(out)
    if push_to is not None:
        check_repository(push_to)
    folder = find(run)
    folder.trusted = trust_remote_code
    recipe, text, adaptation = open_run(folder, scores=target in OF_TEXTS)
    if hides_units(adaptation.model):
        raise UsageError(
            f"--for {target}: no adapter says which heads and channels were pruned; use `lrft merge`"
        )
    source = Source(folder, recipe, text, adaptation.model, target, options, as_trained(recipe, text))
    form = FORMS[target](source)
    result = folder.read(RESULT) if (folder.path / RESULT).is_file() else {}
    as_before = f"{out} is as it was; the same command exports from the start"
    with stop.listening(as_before), whole_folder(out) as scratch:
        record = _about(source) | form.write(scratch)
        if not record.get("merged"):
            record["told"] = [*base_told(recipe), *record["told"]]
        write_in(scratch / RECIPE, recipe_to_share(recipe))
        record |= _measure(source, form.read(scratch))
        write_in(scratch / "README.md", exported_card(recipe, result, record))
        record["files"] = sums(scratch)
        write_in(scratch / RECORD, text_of(record))
    _judge(out, record, form.remedy())
    if push_to is not None:
        with stop.listening(f"{out} is written and not uploaded; `hf upload {push_to} {out}` uploads it"):
            record["pushed"] = push(out, push_to, public, f"lrft export --for {target}")
    return record


def _about(source: Source) -> Exported:
    recipe = source.recipe
    return {
        "run": source.folder.path.name,
        "target": source.target,
        "method": None if recipe.adapter is None else recipe.adapter.method,
        "base": public_name(recipe.model.name),
        "quantization": recipe.quantization.method,
        "tolerance": recipe.export.tolerance,
        "told": [],
        **({} if recipe.model.head is None else {"labels": list(recipe.model.head.labels)}),
        **source.seen,
    }


def _measure(source: Source, written: Comparable | None) -> Exported:
    """What was read back beside the run's own model, on held-out rows."""
    if written is None:
        return {}
    recipe, text = source.recipe, source.text
    rows, rows_from = rows_to_compare(recipe, text)
    record: Exported = {"rows": len(rows), "rows_from": rows_from}
    if not rows:
        say("data.eval: no held-out rows, so what was written was not compared with the run")
        return record
    if rows_from == "data.train":
        say("data.eval: no held-out rows, so what was written was compared on rows of data.train")
    batches = list(eval_batches(rows, recipe.eval.batch_tokens, text.pad_id))
    if source.model.labels:
        assert isinstance(written, Served), "no other form takes what scores texts"
        return {
            **record,
            **compare_scores(scores_of(source.model, batches), scores_of(written, batches).scores),
        }
    return {**record, **compare(source.model, written, batches)}


def _judge(out: Path, record: Exported, remedy: str) -> None:
    """Refuse what is too far off, or would not be taken.

    Raises:
        ToleranceError: with what stays closer.
    """
    for note in record["told"]:
        say(note)
    failed = [
        f"{check['check']} ({check['found']})" for check in record.get("checklist", []) if not check["passed"]
    ]
    if failed:
        raise ToleranceError(f"{out}: would not be taken: {'; '.join(failed)}", record)
    largest = record["tolerance"]
    if "kl_mean" not in record:
        return
    if not (record["kl_mean"] <= largest and abs(record["loss_difference"]) <= largest):
        raise ToleranceError(
            f"{out}: what was written is {record['kl_mean']:.3g} nats per token from the run and its loss "
            f"{record['loss_difference']:+.3g} away, more than export.tolerance {largest}; {remedy}",
            record,
        )
