"""The rows that what was written is compared with its run on."""

from __future__ import annotations

from lrft.api.opening.open_run import sample_row
from lrft.build.rows import training_rows
from lrft.build.text import Text
from lrft.core.notes import say
from lrft.data.encoded import Encoded
from lrft.export.as_trained import AsTrained
from lrft.export.conversation import in_order, render
from lrft.recipe.embedding_clashes import embeds
from lrft.recipe.schema import Recipe
from lrft.registry.errors import DataError


def rows_to_compare(recipe: Recipe, text: Text) -> tuple[list[Encoded], str | None]:
    """Held-out rows, or where there are none training rows, and the key they are from; none where neither is there."""
    limit = recipe.export.fidelity_rows
    if held_out := text.held_out_encoded(limit):
        return held_out, "data.eval"
    try:
        return text.usable(training_rows(recipe), "data.train", limit), "data.train"
    except DataError as error:
        say(f"data.train: cannot be read any more ({error})")
        return [], None


def as_trained(recipe: Recipe, text: Text) -> AsTrained:
    """What training saw of the fixed conversation, and what ended an answer where the model gives any."""
    found: AsTrained = {"conversation": render(text.renderer, chats(recipe, text))}
    if recipe.model.head is None and not embeds(recipe.objective.method):
        found["stops"] = stops_of(text)
    return found


def stops_of(text: Text) -> list[str]:
    """Texts of what ends an answer, the tokenizer's own eos first."""
    return [str(one) for one in text.tokenizer.convert_ids_to_tokens(in_order(text.tokenizer, text.stop_ids))]


def chats(recipe: Recipe, text: Text) -> bool:
    """Whether training rendered rows by the chat template, as its first row says, or where it has one."""
    form = text.renderer.format
    try:
        return bool(form.example(sample_row(recipe, text)).messages)
    except DataError:
        return bool(text.tokenizer.chat_template)
