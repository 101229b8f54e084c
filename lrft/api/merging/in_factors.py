"""Merging with every layer of low rank as two: the smaller model that low-rank compression was for."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from lrft.api.merging.merge import Merge
from lrft.build.text import Text
from lrft.export.factors import split_layers
from lrft.export.fidelity import Fidelity
from lrft.export.merge import merge_into
from lrft.export.uneven import check_architecture, smaller, write_code
from lrft.model.causal_lm import CausalLM
from lrft.model.load import DTYPES
from lrft.recipe.schema import Recipe
from lrft.recipe.sections import ModelSection
from lrft.registry.errors import NotMergeable
from lrft.training.folder import RunFolder


class MergeInFactors(Merge):
    """One merge whose layers are found to be of low rank in float32, and split before they are rounded."""

    def __init__(self, folder: RunFolder, recipe: Recipe, text: Text, model: CausalLM, out: Path) -> None:
        """Settle that factors are rounded to nearest.

        Raises:
            NotMergeable: the model is written in another way already, or is of no architecture of transformers.
        """
        export = recipe.export.model_copy(update={"rounding": "nearest"})
        super().__init__(folder, recipe.model_copy(update={"export": export}), text, model, out)
        if model.labels or smaller(model) is not None:
            what = "scores texts" if model.labels else "lost heads and channels"
            raise NotMergeable(f"--factors: a model that {what} is written without factors; leave it out")
        check_architecture(model.hf)
        self.ranks: dict[str, int] = {}

    def write(self, place: Path) -> Fidelity:
        dense, export = self._base(), self.recipe.export
        merge_into(dense, self.model, onto=export.onto, dtype=torch.float32)
        before = dense.hf.num_parameters()
        self.ranks = split_layers(dense)
        if not self.ranks:
            raise NotMergeable(
                "--factors: no layer has a rank so low that two factors would be smaller; leave it out"
            )
        dense.hf.to(DTYPES[str(export.dtype)])
        self._write(dense, place)
        record = self._done([])
        record["factored_layers"] = len(self.ranks)
        record["parameters_dense"], record["parameters"] = before, dense.hf.num_parameters()
        return record

    def _write(self, dense: CausalLM, place: Path, held: Mapping[str, Tensor] | None = None) -> None:
        super()._write(dense, place, held)
        write_code(dense.hf, place, {}, self.ranks)

    def _load(self, section: ModelSection, own_code: bool = False) -> CausalLM:
        return super()._load(section, own_code or bool(self.ranks))
