"""Merging a run with a score head: a sequence classifier of transformers, compared with the run text by text."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import TYPE_CHECKING

from torch import Tensor

from lrft.api.merging.merge import Merge
from lrft.export.fidelity import Fidelity
from lrft.export.scored import compare_scores, scores_of
from lrft.export.write import write_classifier
from lrft.model.load import DTYPES
from lrft.model.score_head import classifier, give_score_head, lacks_classifier, scores_on_disk
from lrft.model.tokenizer import is_left_out
from lrft.registry.errors import NotMergeable

if TYPE_CHECKING:
    from pathlib import Path

    from lrft.build.text import Text
    from lrft.model.causal_lm import CausalLM
    from lrft.recipe.schema import Recipe
    from lrft.training.folder import RunFolder


class ScoredMerge(Merge):
    """One merge of a model that scores whole texts."""

    def __init__(self, folder: RunFolder, recipe: Recipe, text: Text, model: CausalLM, out: Path) -> None:
        """Refuse a model that transformers has no classifier of.

        Raises:
            NotMergeable: names the model.
        """
        super().__init__(folder, recipe, text, model, out)
        if lacks_classifier(model):
            kind = type(model.hf).__name__
            raise NotMergeable(
                f"transformers has no sequence classifier with the body of {kind}; lrft eval scores the run itself"
            )

    def measure(self, place: Path) -> Fidelity:
        """The classifier on disk beside the run."""
        record: Fidelity = {"rows": len(self.rows), "rows_from": self._compared[1], "generation": {}}
        if not self.rows:
            return record
        # Row by row, as the texts of the files are: a batch has the longest rows first.
        ours = scores_of(self.model, (batch for row in self.rows for batch in self._batches([row])))
        texts = [document.input_ids for row in self.rows for document in row.documents()]
        theirs = scores_on_disk(place, texts, DTYPES[str(self.recipe.export.dtype)])
        return {**record, **compare_scores(ours, theirs)}

    def _base(self) -> CausalLM:
        dense = super()._base()
        give_score_head(dense, self.recipe.model.head, self.recipe.train.seed)
        return dense

    def _write(self, dense: CausalLM, place: Path, held: Mapping[str, Tensor] | None = None) -> None:
        tokenizer = self.text.tokenizer
        pad = self._pad()
        if tokenizer.pad_token_id is None and is_left_out(tokenizer, pad):
            tokenizer = copy.deepcopy(tokenizer)
            tokenizer.pad_token = str(tokenizer.convert_ids_to_tokens([pad])[0])
        write_classifier(classifier(dense, pad), tokenizer, place, self.recipe.export.shard_size)

    def _pad(self) -> int:
        """What the classifier takes for padding: no token that a text ends with, or its score is of another token."""
        tokenizer, last = self.text.tokenizer, {d.input_ids[-1] for row in self.rows for d in row.documents()}
        own = [tokenizer.pad_token_id, tokenizer.eos_token_id] if last else [tokenizer.pad_token_id]
        return next((pad for pad in own if pad is not None and pad not in last), self.text.pad_id)
