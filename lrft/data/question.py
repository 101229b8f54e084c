"""A row as it is scored."""

from __future__ import annotations

from dataclasses import dataclass

from lrft.data.thoughts import Marks


@dataclass(frozen=True)
class Question:
    """A row as it is scored.

    Attributes:
        prompt: what the (last, chosen) answer follows: everything before it, the generation prompt and `given`.
        answer: its tokens, without what ends it.
        reference: its text; of an answer that thinks, what it says afterwards.
        given: what the chat template writes of itself before such an answer, such as an empty block of thoughts.
        features: what `data.features` names of the row, as `column=value`.
        marks: what the answer's thoughts stand between, such as `<think>` and `</think>`; None where it has none.
    """

    prompt: list[int]
    answer: list[int]
    reference: str
    given: str = ""
    marks: Marks | None = None
    features: tuple[str, ...] = ()
