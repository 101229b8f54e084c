"""What a recipe trains on, or is scored with, as sums: of files and rows as they were read, and of the base."""

from __future__ import annotations

from lrft.build.text import Text
from lrft.data.row_sums import record_rows
from lrft.model.causal_lm import CausalLM
from lrft.model.decisive import decisive_fields, sum_of, template_sum, tokenizer_sums
from lrft.recipe.schema import Recipe
from lrft.recipe.sections import ModelSection
from lrft.registry.json import Json
from lrft.training.trained_on import TrainedOn

CHANGES = {"rope_scaling", "context", "add_tokens", "resize"}  # of a base, what its own files do not say
READS = ("name", "revision", "tokenizer", "add_tokens")  # what decides the tokens of a text


def identify(recipe: Recipe, text: Text | None) -> TrainedOn:
    """What is known before the base is loaded.

    All rows that are trained on are kept as tokens, whatever they were read from, so all of them count. Where only
    evaluation is wanted the held-out rows are not encoded, and known by the sums of their files alone.

    Args:
        text: as it was read; None where only the model is wanted.

    Raises:
        RecipeError: the configuration of the model cannot be read.
    """
    config = decisive_fields(recipe.model)
    of = recipe.model.tokenizer or recipe.model.name
    if text is None:
        return TrainedOn(recipe.model.name, of, config)
    training = text.rows is not None
    splits = {"train": text.rows, "eval": text.held_out}
    encoded = {"train": text.train if training else None, "eval": text.scored}
    return TrainedOn(
        recipe.model.name,
        of,
        config,
        tokenizer_sums(text.tokenizer, text.stop_ids),
        template_sum(text.tokenizer) if text.renderer.template.used or not training else None,
        text.fingerprints,
        {split: rows.sums for split, rows in splits.items() if rows is not None},
        {split: record_rows(rows) for split, rows in encoded.items() if rows is not None},
    )


def identify_base(section: ModelSection, model: CausalLM) -> dict[str, Json]:
    """What decides what a bare base makes of given tokens, for files of what it made.

    The fingerprint is of values alone: it knows nothing of config.json, and where the files are in bfloat16 it is the
    same whether they compute in that or in float32.

    Raises:
        RecipeError: the configuration of the model cannot be read.
    """
    config: Json = dict(sorted(decisive_fields(section).items()))
    changes: Json = section.model_dump(mode="json", include=CHANGES, exclude_none=True)
    return {"base": model.fingerprint, "dtype": section.dtype, "config": sum_of([config, changes])}


def reads_alike(one: ModelSection, other: ModelSection) -> bool:
    """Whether two models are one, and make the same tokens of a text."""
    return all(getattr(one, key) == getattr(other, key) for key in READS)
