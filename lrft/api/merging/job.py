"""Which kind of merge a run and what was asked of it make."""

from __future__ import annotations

from pathlib import Path

from lrft.api.merging.in_bits import MergeInBits
from lrft.api.merging.in_factors import MergeInFactors
from lrft.api.merging.in_gguf import MergeInGguf
from lrft.api.merging.in_integers import MergeInIntegers
from lrft.api.merging.merge import Merge
from lrft.api.merging.scored import ScoredMerge
from lrft.api.merging.streamed import StreamedMerge
from lrft.build.text import Text
from lrft.model.causal_lm import CausalLM
from lrft.recipe.schema import Recipe
from lrft.registry.axes import QUANTIZERS
from lrft.training.folder import RunFolder


def make_job(
    folder: RunFolder,
    recipe: Recipe,
    text: Text,
    model: CausalLM,
    out: Path,
    storage: str | None,
    rank: int,
    factors: bool,
) -> Merge:
    """The merge of an opened run.

    Args:
        storage, rank: of `--requantize` and `--keep-rank`.
        factors: of `--factors`.

    Raises:
        NotMergeable: the model cannot be written so.
    """
    if storage is not None:
        provided = QUANTIZERS.declared(storage).provides
        kinds: dict[str, type[MergeInBits]] = {"file_levels": MergeInGguf, "integer_levels": MergeInIntegers}
        in_bits = next((kind for trait, kind in kinds.items() if trait in provided), MergeInBits)
        return in_bits(folder, recipe, text, model, out, storage, rank)
    if factors:
        return MergeInFactors(folder, recipe, text, model, out)
    kind = ScoredMerge if model.labels else StreamedMerge
    return kind(folder, recipe, text, model, out)
