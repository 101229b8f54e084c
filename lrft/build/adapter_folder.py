"""A run's adapter as a folder for others: weights, configuration, tokenizer, card and recipe, whole or not at all."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from lrft.build.text import Text
from lrft.export.peft_format import adapter_files
from lrft.export.write import write_adapter_folder
from lrft.files.unchanging import Unchanging
from lrft.model.causal_lm import CausalLM
from lrft.recipe.resolved import resolved
from lrft.recipe.schema import Recipe
from lrft.registry.json import Json
from lrft.training.adapter_folders import THEN, record_bytes
from lrft.training.within_run import STANDS_FOR as RECORD


def write_adapter(
    folder: Path,
    model: CausalLM,
    recipe: Recipe,
    text: Text,
    card: Mapping[str, Json],
    checkpoint: Mapping[str, Json] | None = None,
    beside: Unchanging | None = None,
) -> set[str]:
    """Write the adapter as it is now; returns the names of its own files.

    Args:
        card: name, step, loss and trainable parameters, for the README.
        checkpoint: which checkpoint it is, kept beside it in checkpoint.json.
        beside: of a folder that is written again and again.

    Raises:
        WriteError: the disk is full or not writable; what was there before is intact.
    """
    from lrft.model.stopping import trained_generation  # imports transformers, which a plan does without

    files = adapter_files(model, recipe, card)
    files["recipe.yaml"] = _text_of(recipe).encode()
    own = recipe.model.tokenizer is not None
    generation, _ = trained_generation(model.hf, text.tokenizer, text.stop_ids, text.pad_id, own)
    files["generation_config.json"] = generation.to_json_string().encode()
    if checkpoint is not None:
        files[RECORD] = record_bytes(checkpoint)
    write_adapter_folder(folder, files, text.tokenizer, THEN, beside)
    return set(files)


class _Known:
    """The text of the recipe asked for last: a run writes its own beside every checkpoint."""

    recipe: Recipe | None = None
    text = ""


def _text_of(recipe: Recipe) -> str:
    if _Known.recipe is not recipe:
        _Known.recipe, _Known.text = recipe, resolved(recipe)
    return _Known.text
