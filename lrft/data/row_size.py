"""The longest row that is looked at: one that no tokenizer and no chat template takes in a bearable time is refused."""

from __future__ import annotations

from lrft.data.example import Example
from lrft.data.reached import leaves
from lrft.registry.errors import DataError

LONGEST = 5_000_000  # characters, about a million tokens; a long novel has 3,000,000
TURNS = 1_000  # messages; each answer is found by rendering the conversation up to it


def check_size(example: Example, windows: bool = False) -> None:
    """Refuse an example that is far beyond what can be trained on.

    Args:
        windows: it is learnt in windows, so that a document may be as long as it likes.

    Raises:
        DataError: its text is too long, or its conversation has too many messages.
    """
    for one in example.answers():
        if len(one.messages) > TURNS and len(one.learnt) > 1:
            raise DataError(
                f"the conversation has {len(one.messages):,} messages; at most {TURNS:,} are learnt from in one row, "
                "so divide it"
            )
        length = len(one.prompt) + len(one.completion) + sum(map(len, leaves([*one.messages])))
        if length > LONGEST and not windows:
            raise DataError(
                f"the row has {length:,} characters; at most {LONGEST:,} are taken as one row, so divide or remove it"
            )
