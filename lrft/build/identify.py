"""What a recipe trains on, or is scored with, as sums: of files and rows as they were read, and of the base."""

from __future__ import annotations

from lrft.build.text import Text
from lrft.data.row_sums import record_rows
from lrft.model.decisive import decisive_fields, template_sum, tokenizer_sums
from lrft.recipe.schema import Recipe
from lrft.training.trained_on import TrainedOn


def identify(recipe: Recipe, text: Text | None) -> TrainedOn:
    """What is known before the base is loaded.

    All rows that are trained on are in memory as tokens, whatever they were read from, so all of them count. Where only
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
