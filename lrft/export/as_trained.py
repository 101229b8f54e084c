"""What the record of a written folder keeps of training, for a later look at the folder."""

from __future__ import annotations

from typing import TypedDict

from lrft.files.sums import Sum

Message = dict[str, str]


class Rendered(TypedDict):
    """The conversation as training renders it.

    `messages` is empty where training used no chat template: the text is then a plain one. `date` is the day that
    the template was told, or None where it does not ask.
    """

    messages: list[Message]
    text: str
    ids: list[int]
    date: str | None


class AsTrained(TypedDict, total=False):
    """What the record of a written folder keeps for a later look: what training saw, and the sums of its files.

    `stops` are the texts that ended an answer in training, the tokenizer's own eos first; absent where nothing is
    answered.
    """

    stops: list[str]
    conversation: Rendered
    files: dict[str, Sum]
