"""What an answer thinks before it speaks: in a field of its message, or in a block that its text begins with."""

from __future__ import annotations

import re
from bisect import bisect_left
from dataclasses import dataclass

from lrft.data.example import Message
from lrft.registry.json import Json, to_list
from lrft.registry.protocols import Tokenizer

THOUGHT = ("reasoning_content", "reasoning", "thinking")  # fields that hold what is thought before an answer
INLINE = re.compile(r"\s*(<(think\w*|thought|reason\w*)>)(.*?)(</\2>)\s*", re.DOTALL)


@dataclass(frozen=True)
class Marks:
    """What a template writes around the thoughts before an answer."""

    opening: str
    closing: str


def thought(message: Message) -> tuple[str, str]:
    """What a message thinks, in a field or in a block that its content begins with, and what it then says."""
    content = message["content"]
    said = content if isinstance(content, str) else ""
    held = next((words for name in THOUGHT if isinstance(words := message.get(name), str)), "")
    block = INLINE.match(said)
    return (held or block[3], said[block.end() :]) if block else (held, said)


def pieces(content: Json) -> list[str]:
    """The texts of a message; one that begins with a block of thoughts is two, the block's marks left out."""
    if not isinstance(content, str):
        return [str(part["text"]) for part in to_list(content) if isinstance(part, dict)]
    block = INLINE.match(content)
    return [block[3], content[block.end() :]] if block else [content]


def marks(message: Message, answer: str) -> Marks | None:
    """The marks in a rendered `answer` around what the message thinks, such as `<think>` and `</think>`."""
    content = message["content"]
    block = INLINE.match(content) if isinstance(content, str) else None
    if block and block[1] in answer and block[4] in answer:
        return Marks(block[1], block[4])
    thinks, says = (part.strip() for part in thought(message))
    if not thinks or thinks not in answer:
        return None
    before, _, rest = answer.partition(thinks)
    between = rest[: rest.index(says)].strip() if says and says in rest else next(iter(rest.split()), "")
    return Marks(before.strip(), between) if between else None


def said(tokenizer: Tokenizer, tokens: list[int], between: Marks | None) -> str:
    """The text of an answer without special tokens, and without what it thinks between the marks before it."""

    def decoded(count: int) -> str:
        return str(tokenizer.decode(tokens[:count]))

    if between is not None and between.closing in decoded(len(tokens)):
        end = bisect_left(range(len(tokens) + 1), True, key=lambda count: between.closing in decoded(count))
        return str(tokenizer.decode(tokens[end:], skip_special_tokens=True)).lstrip()
    if between is not None and between.opening in decoded(len(tokens)):
        return ""  # it did not come to an end of its thoughts
    return str(tokenizer.decode(tokens, skip_special_tokens=True))
