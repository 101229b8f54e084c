"""The tokens by which the replies to whether an answer is right begin."""

from __future__ import annotations

from lrft.data.example import Row
from lrft.data.formats._format import Format
from lrft.data.tokenize import Renderer
from lrft.registry.errors import DataError


def reply_tokens(renderer: Renderer, row: Row) -> tuple[int, int]:
    """First token of the reply that an answer is wrong, and that it is right, as rows of this format have them.

    Args:
        row: any one; its own judgement is not read.

    Raises:
        DataError: the rows ask no such question, or both replies begin alike.
    """
    found = []
    for right in (False, True):
        encoded = _judging(renderer, right).encode(row)
        if len(encoded.parts) != 2:
            raise DataError(
                "data.format.query: the rows do not ask whether their answer is right; write a question"
            )
        reply = encoded.documents()[1]
        found.append(next(i for i, learnt in zip(reply.input_ids, reply.supervised, strict=True) if learnt))
    if found[0] == found[1]:
        token = renderer.tokenizer.decode(found[:1])
        raise DataError(
            f"data.format.replies: both begin with the token {token!r}, by which they are told apart; write others, "
            'such as ["no", "yes"]'
        )
    return found[0], found[1]


def _judging(renderer: Renderer, right: bool) -> Renderer:
    """The renderer with one judgement for all rows, which leaves long ones whole."""
    given = renderer.format
    settings = given.config.model_copy(update={"wanted": right})
    format: Format = type(given)(settings)
    return Renderer(
        renderer.tokenizer,
        format,
        renderer.stop_ids,
        renderer.max_length,
        today=renderer.today,
        features=renderer.features,
    )
