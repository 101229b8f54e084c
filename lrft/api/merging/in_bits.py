"""`lrft merge --requantize`: merged weights in few bits, as transformers reads them, and a remainder beside them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from lrft.api.merging.merge import Merge
from lrft.api.opening.stopping import check_stops
from lrft.core.adapted import adapted
from lrft.core.levels import Levelled
from lrft.core.notes import say
from lrft.core.on_grid import OnGrid
from lrft.export.fidelity import Fidelity, Nearest, compare
from lrft.export.merge import merge_into
from lrft.export.plain_form import read_pairs
from lrft.export.remainder import REMAINDER, check_remainder, remainder_files
from lrft.export.requantize import Bits, InBits, cast, layers_to_round, round_in_turn, round_to_nearest, said
from lrft.export.served import with_pairs
from lrft.files.scratch import scratch_folder
from lrft.files.write import make_folder, write_in
from lrft.model.in_bits import load_in_bits
from lrft.model.load import DTYPES
from lrft.recipe.schema import Recipe
from lrft.registry.axes import OBJECTIVES, QUANTIZERS
from lrft.registry.config import MethodConfig
from lrft.registry.errors import NotMergeable, UsageError

if TYPE_CHECKING:
    from lrft.build.text import Text
    from lrft.model.causal_lm import CausalLM
    from lrft.training.folder import RunFolder

LAYERS_TOLD = 3
WORDS = 32  # a side of whole words, whatever the bits


class MergeInBits(Merge):
    """One merge into few bits, read back by transformers, and nearest rounding beside it, which does not stay."""

    def __init__(
        self,
        folder: RunFolder,
        recipe: Recipe,
        text: Text,
        model: CausalLM,
        out: Path,
        storage: str,
        rank: int,
    ) -> None:
        """Settle what the layers are stored in: as in training where that is the same storage, else its defaults.

        Raises:
            NotMergeable: layers store (in, out).
        """
        super().__init__(folder, recipe, text, model, out)
        if model.transposed:
            raise NotMergeable(
                f"--requantize: {type(model.hf).__name__} stores its layers as (in, out), of which few bits have no "
                "checked form; merge without it"
            )
        kind = QUANTIZERS.get(storage)
        assert issubclass(kind, Levelled), "a storage that provides levels is one"
        own = recipe.quantization
        config = own if own.method == storage else kind.Config(method=storage)
        self.storage = storage
        if "integer_levels" in kind.provides:
            config = self._on_their_grid(kind, config)
        self.bits = Bits(kind, config, DTYPES[str(recipe.export.dtype)], rank)
        self.layers: list[str] = []
        self.kept = False  # a remainder is written

    def _on_their_grid(self, kind: type[Levelled], config: MethodConfig) -> MethodConfig:
        """The settings of the storage with the bits and groups that the run's adapters were trained in.

        Raises:
            NotMergeable: no checkpoint in that layout has so many bits.
        """
        said = next((s for grid in self._grids().values() if (s := grid.grid_settings) is not None), {})
        try:
            found = type(config).model_validate({**config.model_dump(), **said})
        except ValueError:
            found = None
        if found is None or (said and not kind.fits(found, WORDS, WORDS * int(str(said["group_size"])))):
            raise NotMergeable(
                f"--requantize {self.storage}: it has no {said.get('bits')} bits, which the adapter was trained in; "
                "merge without it"
            )
        return found

    def _grids(self) -> dict[str, OnGrid]:
        """Adapters of the run that know on which integers their merged weight lies."""
        found = {path: module.adapter for path, module in adapted(self.model.hf)}
        return {path: adapter for path, adapter in found.items() if isinstance(adapter, OnGrid)}

    def write(self, place: Path) -> Fidelity:
        dense = self._in_float32()
        self.layers = layers_to_round(dense, self.bits)
        if not self.layers:
            raise NotMergeable(
                f"--requantize {self.storage}: no layer of this model fits its blocks; merge without it"
            )
        if self.bits.rank:
            self._check_rank(dense)
            check_remainder(dense, self.layers)
        objective = OBJECTIVES.get(self.recipe.objective.method)(self.recipe.objective)
        found = round_in_turn(dense, self._batches(self.calibration), objective, self.bits, self._grids())
        self._tell(found)
        self._write_in_bits(dense, found, place)
        self.kept = bool(found.pairs)
        if self.kept:
            make_folder(place / REMAINDER)
            for name, content in remainder_files(dense, found.pairs, self.bits.dtype).items():
                write_in(place / REMAINDER / name, content)
        done = self._done([])
        done["rounding"] = "feedback"
        return {
            **done,
            "requantized": self.storage,
            "layers_in_bits": len(found.layers),
            "layers_dense": found.dense,
            "layers_exact": len(found.exact),
            "rounded_to_nearest": found.unmeasured,
            "calibration_rows": len(self.calibration),
            "bytes_in_bits": sum(layer.stored_bytes for layer in found.layers.values()),
            "kept_rank": self.bits.rank if self.kept else 0,
            "remainder_bytes": sum(p.A.nbytes + p.B.nbytes for p in found.pairs.values()),
        }

    def _check_rank(self, dense: CausalLM) -> None:
        """Refuse a rank that no layer has.

        Raises:
            UsageError: with the highest that some layer has.
        """
        most = max(min(dense.hf.get_parameter(f"{name}.weight").shape) for name in self.layers)
        if self.bits.rank > most:
            raise UsageError(
                f"--keep-rank {self.bits.rank}: is above the smaller side of every layer; write at most {most}"
            )

    def measure(self, place: Path) -> Fidelity:
        """What transformers computes from the files: nearest rounding, feedback, and feedback with the remainder."""
        record: Fidelity = {"rows": len(self.rows), "rows_from": self._compared[1]}
        if self.rows:
            record["nearest"] = self._nearest_in(place)
        merged = self._read(place)
        pairs = read_pairs(place / REMAINDER) if self.kept else {}
        if self.rows and pairs:
            record["without_remainder"] = self._figures(merged)
        with with_pairs(merged.hf.named_modules(), pairs, merged.device):
            if self.rows:
                record = {**record, **compare(self.model, merged, self._batches(self.rows))}
            record["generation"] = check_stops(self.recipe, self.text, merged, place, self.folder.trusted)
        return record

    def _nearest_in(self, folder: Path) -> Nearest:
        """The merged weights as the storage itself rounds them, by way of files in `folder` that do not stay."""
        dense = self._in_float32()
        found = round_to_nearest(dense, self.bits)
        with scratch_folder(folder / "nearest") as place:
            self._write_in_bits(dense, found, place)
            return self._figures(self._read(place))

    def _figures(self, merged: CausalLM) -> Nearest:
        found = compare(self.model, merged, self._batches(self.rows))
        return {"kl_mean": found["kl_mean"], "loss_difference": found["loss_difference"]}

    def _in_float32(self) -> CausalLM:
        """The merged model, unrounded, where the run's is."""
        dense = self._base()
        merge_into(dense, self.model, onto=self.recipe.export.onto, dtype=DTYPES["float32"])
        dense.hf.to(self.model.device)
        if dense.flattens:  # kernels that take no float32
            dense.set_attention("sdpa")
        return dense

    def _write_in_bits(self, dense: CausalLM, found: InBits, place: Path) -> None:
        held = cast(dense, found, self.bits.dtype, self.recipe.export.rounding != "nearest")
        dense.hf.config.quantization_config = said(found, self.bits)
        self._write(dense, place, held)

    def _read(self, place: Path) -> CausalLM:
        return load_in_bits(place, self.bits.dtype, self.layers, self.model, self.folder.trusted)

    def _tell(self, found: InBits) -> None:
        on_grids = [name for name, grid in self._grids().items() if grid.grid_settings is not None]
        missed = [name for name in on_grids if name in found.layers and name not in found.exact]
        if missed:
            say(
                f"{_told(missed)}: trained on a grid of their own, and are rounded onto that of {self.storage}"
            )
        if found.unmeasured:
            say(f"{_told(found.unmeasured)}: no calibration row reached them, so they are rounded to nearest")
        if len(found.dense) > 1:  # the head always does
            say(f"{_told(found.dense)}: stay in {self.recipe.export.dtype}")


def _told(names: list[str]) -> str:
    more = f" and {len(names) - LAYERS_TOLD} more" if len(names) > LAYERS_TOLD else ""
    return ", ".join(names[:LAYERS_TOLD]) + more
