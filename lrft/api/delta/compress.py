"""`lrft delta compress`: the differences of layers in mixed bits, measured on rows of a recipe."""

from __future__ import annotations

from pathlib import Path

from lrft.api.delta.diff import check_shapes, section_of
from lrft.api.delta.rounding import Calibration, Found, in_turn, to_nearest
from lrft.api.delta.tuned import tuned_on_call
from lrft.api.opening.compared import rows_to_compare
from lrft.build.dataset import read_text
from lrft.build.rows import training_rows
from lrft.core import stop
from lrft.core.notes import say
from lrft.data.eval_batches import eval_batches
from lrft.export.delta import (
    TENSORS,
    TOKENIZER,
    Delta,
    add,
    grow,
    read_record,
    seal,
    write_delta,
)
from lrft.export.delta_held import Held
from lrft.export.fidelity import compare
from lrft.export.mixed_bits import Groups
from lrft.export.write import check_free, whole_folder
from lrft.files.read import RECORD as LARGEST
from lrft.files.read import read_bytes
from lrft.files.tensors_written import Gathered
from lrft.model.causal_lm import CausalLM
from lrft.model.load import load_model
from lrft.model.tokenizer import load_tokenizer
from lrft.recipe.load import load_recipe
from lrft.recipe.schema import Recipe
from lrft.registry.axes import OBJECTIVES
from lrft.registry.errors import UsageError
from lrft.training.folder import RUN
from lrft.training.relied import own_recipe
from lrft.training.run_manifest import text_of


def compress(
    delta: Path | str,
    out: Path | str,
    ratio: float = 1 / 16,
    groups: Groups | None = None,
    recipe: Path | str | None = None,
    rows: int = 128,
    trust_remote_code: bool = False,
) -> Delta:
    """Write a folder of differences with the layers of its blocks in few bits; returns the record, written there too.

    Args:
        ratio: of the 16-bit size that the vectors of a layer may take, without scales.
        groups: bits and columns instead, the same for every layer.
        recipe: of the base that the differences are of; layers are then rounded against their inputs on its training
            rows, and the result is compared on its held-out ones.
        rows: training rows that are measured on.

    Raises:
        UsageError: there is nothing to compress, or the recipe is of another base.
        WriteError: the disk is full or not writable; nothing is left at `out`.
    """
    check_free(Path(out))
    folder = Path(delta)
    record = read_record(folder)
    if record.get("layers"):
        raise UsageError(f"{delta}: is compressed already; compress what `lrft delta diff` wrote")
    held = Held(folder, record)
    tokenizer, _ = load_tokenizer(section_of(folder / TOKENIZER))
    generation = read_bytes(folder / TOKENIZER / "generation_config.json", LARGEST, folder).decode()
    chosen = None if recipe is None else _recipe(recipe)
    calibration = None if chosen is None else _calibration(chosen, record, held, rows, trust_remote_code)
    with stop.listening(), whole_folder(Path(out)) as place:
        found = Found(Gathered(place / TENSORS))
        if calibration:
            in_turn(calibration, held, found, ratio, groups)
        else:
            to_nearest(held, found, ratio, groups)
        if not found.groups:
            raise UsageError(
                f"{delta}: holds no layer of a block with room for a column; give a higher --ratio"
            )
        record = _record(
            record, found, ratio if groups is None else 0.0, calibration.rows if calibration else 0
        )
        if calibration and chosen is not None and calibration.held_out:
            record |= _measured(calibration, tuned_on_call(chosen.model, record, held, trust_remote_code))
        kept = [name for name in held if name not in found.groups]
        record = write_delta(found.gathered, record, tokenizer, generation, held, kept)
        seal(place, text_of(record))
    for line in record["told"]:
        say(line)
    return record


def _recipe(asked: Path | str) -> Recipe:
    """A recipe file's, or a run's own."""
    run = Path(asked)
    return own_recipe(run).recipe if (run / RUN).is_file() else load_recipe(asked).recipe


def _calibration(
    recipe: Recipe, record: Delta, held: Held, rows: int, trust_remote_code: bool
) -> Calibration:
    model = load_model(section_of(recipe.model.name), trust_remote_code=trust_remote_code)
    if model.fingerprint != record["base_fingerprint"]:
        raise UsageError(f"--recipe: is of another base than the differences are of ({record['base']})")
    grow(model, record["rows"])
    check_shapes(model, record, recipe.model.name)
    add(model, held)
    text = read_text(recipe, training=False, trust_remote_code=trust_remote_code)
    measured = text.usable(training_rows(recipe), "data.train", rows)
    compared, _ = rows_to_compare(recipe, text)
    batches = [
        list(eval_batches(some, recipe.eval.batch_tokens, text.pad_id)) for some in (measured, compared)
    ]
    objective = OBJECTIVES.get(recipe.objective.method)(recipe.objective)
    return Calibration(model, len(measured), batches[0], batches[1], objective)


def _measured(at: Calibration, tuned: CausalLM) -> Delta:
    """How the compressed model computes beside the tuned one."""
    found = compare(tuned, at.model, at.held_out)
    return {"kl_mean": found["kl_mean"], "loss_difference": found["loss_difference"]}


def _record(before: Delta, found: Found, ratio: float, rows: int) -> Delta:
    told = "no --recipe was given, so layers are rounded to nearest and not against their inputs"
    return {
        **before,
        "layers": found.groups,
        "errors": found.errors,
        "relative_error": (found.lost / found.total) ** 0.5 if found.total else 0.0,
        "ratio": ratio,
        "bytes": found.size,
        "bytes_in_16_bits": found.whole,
        "calibration_rows": rows,
        "told": [] if rows else [told],
    }
