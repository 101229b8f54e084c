"""`lrft merge`: a run's adapter in dense weights, and how faithful they are."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property, partial
from pathlib import Path

from torch import Tensor

from lrft.api.merging.options import as_written, check_bits, opened, with_options
from lrft.api.merging.remedy import judge
from lrft.api.opening.compared import as_trained, rows_to_compare
from lrft.api.opening.room import merged_bytes
from lrft.api.opening.stopping import check_stops
from lrft.build.rows import training_rows
from lrft.build.text import Text
from lrft.core import stop
from lrft.core.batch import Batch
from lrft.core.notes import say
from lrft.data.encoded import Encoded
from lrft.data.eval_batches import eval_batches
from lrft.export.card import merged_card, recipe_to_share
from lrft.export.changes import relative_change
from lrft.export.feedback import moments
from lrft.export.fidelity import Fidelity, Nearest, compare
from lrft.export.merge import Rounding, merge_into
from lrft.export.record import RECORD, sums
from lrft.export.uneven import brings_code, write_units
from lrft.export.write import check_free, whole_folder, write_merged
from lrft.files.write import write_in
from lrft.model.causal_lm import CausalLM
from lrft.model.load import DTYPES, load_model
from lrft.model.stopping import stops_as_trained
from lrft.recipe.schema import Recipe
from lrft.recipe.sections import ModelSection
from lrft.registry.axes import OBJECTIVES
from lrft.training.chosen import find_checkpoint
from lrft.training.folder import RECIPE, RunFolder
from lrft.training.relied import own_recipe
from lrft.training.run_manifest import text_of


def merge(
    run: RunFolder | Path | str | None = None,
    out: Path | str = "model",
    onto: str | None = None,
    rank: int | None = None,
    rounding: str | None = None,
    dtype: str | None = None,
    checkpoint: str | None = None,
    trust_remote_code: bool = False,
    add: Sequence[Path | str] = (),
    features: str | None = None,
    requantize: str | None = None,
    keep_rank: int | None = None,
    factors: bool = False,
) -> Fidelity:
    """Merge a run's adapter into dense weights at `out`; returns the fidelity record, also written beside them.

    Args:
        run: a run folder, its path or name under runs/, or one of its checkpoints; by default the latest run.
        out: a new or an empty folder.
        rank: keep only so many leading rank components, of adapters that allow it.
        onto, rounding, dtype: by default what the run's recipe says under `export`.
        checkpoint: `best`, `last` or `step-N`; by default the newest.
        trust_remote_code: let code run that comes with the base model.
        add: runs or PEFT folders of the same base whose changes are added; the recipe written beside is the run's.
        features: of adapters that go by them, those of the rows that the merged model is for, commas between.
        requantize: storage in few bits that the layers are rounded into, with error feedback.
        keep_rank: of an adapter in `out`/remainder with what that rounding left.
        factors: write every layer of low rank as two, with the code that loads them.

    Raises:
        WriteError: the disk has no room for it, or failed; nothing is left at `out`.
        UsageError: `out` is not free, or there is no such checkpoint.
        NotMergeable: the method is not a change of the weight.
        NumericalError: a weight is not finite or beyond the precision; nothing is written.
        ToleranceError: the merged model is further from the adapter than `export.tolerance`, or stops elsewhere than
            the run; files are kept.
    """
    from lrft.api.merging.job import make_job

    folder, out = find_checkpoint(run, checkpoint), Path(out)
    folder.trusted = trust_remote_code
    check_free(out)
    check_bits(own_recipe(folder.path).recipe, requantize, keep_rank, rounding, factors)
    recipe, text, model, named = opened(folder, rank, add, features)
    recipe = with_options(recipe, onto, rounding, dtype)
    job = make_job(folder, recipe, text, model, out, requantize, keep_rank or 0, factors)
    needed = merged_bytes(model, recipe)
    title = " + ".join([folder.path.name, *(Path(other).name for other in add)])
    as_before = f"{out} is as it was; the same command merges from the start"
    with stop.listening(as_before), whole_folder(out, needed) as place:
        record: Fidelity = {**named, **job.write(place), **job.measure(place)}
        write_in(place / "README.md", merged_card(recipe, record, title))
        write_in(place / RECIPE, recipe_to_share(recipe))
        record = {**record, **as_trained(recipe, text), "files": sums(place)}
        write_in(place / RECORD, text_of(record))
    judge(record, out, recipe, model)
    return record


class Merge:
    """One merge: what is written, then what of it is read back and measured. Two models are in memory at most.

    A model that its files hold tensor by tensor is never in memory as a whole (`lrft.api.merging.streamed`).
    """

    def __init__(self, folder: RunFolder, recipe: Recipe, text: Text, model: CausalLM, out: Path) -> None:
        self.folder, self.recipe, self.text, self.out = folder, recipe, text, out
        self.model = model

    @cached_property
    def _compared(self) -> tuple[list[Encoded], str | None]:
        return rows_to_compare(self.recipe, self.text)

    @property
    def rows(self) -> list[Encoded]:
        """What the models are compared on."""
        return self._compared[0]

    def merged(self) -> CausalLM:
        """The merged model in `export.dtype`, in memory alone."""
        dense = self._base()
        self._merge_into(dense, self.recipe.export.rounding)
        return dense

    def write(self, place: Path) -> Fidelity:
        """Merge and write the model into a fresh folder; what was done, for the record."""
        dense = self._base()
        drawn = self._merge_into(dense, self.recipe.export.rounding)
        self._write(dense, place)
        return self._done(drawn)

    def _done(self, drawn: list[str]) -> Fidelity:
        """For the record: how it was merged.

        Args:
            drawn: names of the tensors that were rounded stochastically, which the record has beside feedback.
        """
        export = self.recipe.export
        done: Fidelity = {
            "run": self.folder.path.name,
            "onto": export.onto,
            "dtype": export.dtype,
            "rounding": export.rounding,
            "relative_change": relative_change(self.model),
            "tolerance": export.tolerance,
        }
        if export.rounding == "feedback":
            done |= {"calibration_rows": len(self.calibration), "rounded_stochastically": drawn}
        return done

    def _write(self, dense: CausalLM, place: Path, held: Mapping[str, Tensor] | None = None) -> None:
        text = self.text
        foreign = self.recipe.model.tokenizer is not None
        dropped = stops_as_trained(dense.hf, text.tokenizer, text.stop_ids, text.pad_id, foreign)
        if dropped:
            say(
                f"generation_config.json: left out {', '.join(dropped)}, which transformers ignores and refuses to save"
            )
        write_merged(dense, text.tokenizer, place, self.recipe.export.shard_size, held)
        write_units(dense.hf, self.model, place)

    def measure(self, place: Path) -> Fidelity:
        """The merged model on disk beside the adapter, and what nearest rounding would have given."""
        merged = self._read(place)
        record: Fidelity = {"rows": len(self.rows), "rows_from": self._compared[1]}
        if self.rows:
            record = {**record, **compare(self.model, merged, self._batches(self.rows))}
        record["generation"] = check_stops(self.recipe, self.text, merged, place, self.folder.trusted)
        del merged
        if self.rows and self.recipe.export.rounding not in (None, "nearest"):
            record["nearest"] = self._nearest()
        return record

    def _base(self) -> CausalLM:
        return self._load(self._section())

    def _load(self, section: ModelSection, own_code: bool = False) -> CausalLM:
        trusted, seed = self.folder.trusted or own_code, self.recipe.train.seed
        return load_model(section, device=self.model.device, trust_remote_code=trusted, seed=seed)

    def _read(self, place: Path) -> CausalLM:
        """The merged model on disk, where the run's is."""
        written = as_written(self._section(), place, self.recipe.export.dtype)
        merged = self._load(written, own_code=brings_code(self.model))
        merged.hf.to(self.model.device)
        return merged

    def _merge_into(self, dense: CausalLM, method: str | None) -> list[str]:
        export, rounding = self.recipe.export, self._rounding(method)
        return merge_into(
            dense, self.model, onto=export.onto, dtype=DTYPES[str(export.dtype)], rounding=rounding
        )

    def _rounding(self, method: str | None) -> Rounding:
        measured, objective = None, self.recipe.objective
        if method == "feedback":
            batches = self._batches(self.calibration)
            loss = OBJECTIVES.get(objective.method)(objective)
            measured = partial(moments, self.model, batches=batches, objective=loss)
        return Rounding(method or "nearest", measured)

    @cached_property
    def calibration(self) -> list[Encoded]:
        """The training rows that feedback measures on.

        Raises:
            DataError: they cannot be read, or hold nothing to learn.
        """
        limit = self.recipe.export.calibration_rows
        return self.text.usable(training_rows(self.recipe), "data.train", limit)

    def _batches(self, rows: list[Encoded]) -> list[Batch]:
        return list(eval_batches(rows, self.recipe.eval.batch_tokens, self.text.pad_id))

    def _nearest(self) -> Nearest:
        """The same figures for nearest rounding, of a model that is never written."""
        found = compare(self.model, self._rounded_to_nearest(), self._batches(self.rows))
        return {"kl_mean": found["kl_mean"], "loss_difference": found["loss_difference"]}

    def _rounded_to_nearest(self) -> CausalLM:
        dense = self._base()
        self._merge_into(dense, "nearest")
        dense.hf.to(self.model.device)
        return dense

    def _section(self) -> ModelSection:
        """The model section with the attention that the run's model was found to compute rightly with."""
        return self.recipe.model.model_copy(update={"attention": self.model.attention})
