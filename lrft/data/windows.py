"""Windows: a document longer than a row is learnt in several rows that overlap, every token of it once."""

from __future__ import annotations

from lrft.data.encoded import Drawn, Encoded, fitted
from lrft.registry.errors import DataError


def windows(document: Drawn, length: int, stride: int) -> list[Encoded]:
    """The document as rows of at most `length` tokens, each beginning `stride` tokens after the one before.

    A window learns what no window before it has learnt, and reads what it shares with them. The `lead` tokens that the
    document begins with (beginning of text) stand in front of every window. A document that fits is one row.

    Raises:
        DataError: windows would not overlap, so that the first token of one would be predicted from nothing.
    """
    if len(document.ids) <= length:
        return [fitted([document], length, "error")]
    lead = document.lead
    room = length - lead
    if stride >= room:
        raise DataError(
            f"data.stride: {stride} leaves windows of {length} tokens without an overlap; write at most {room - 1}"
        )
    front, body = document.ids[:lead], document.ids[lead:]
    learnt = document.supervised[lead:]
    made: list[Encoded] = []
    start = done = 0
    while done < len(body):
        end = min(start + room, len(body))
        new = [wanted and start + k >= done for k, wanted in enumerate(learnt[start:end])]
        made.append(
            Encoded(
                front + body[start:end],
                (document.supervised[:lead] if not made else [False] * lead) + new,
                length=lead + end - start,
                extra_bos=document.extra_bos,
                goes_on=end < len(body),
                read_again=lead + done - start if made else 0,
            )
        )
        start, done = start + stride, end
    return made
