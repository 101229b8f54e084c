"""One fixed conversation, rendered wherever a prompt is made: what training saw has to be what a server sends."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from lrft.data.chat import ChatTemplate
from lrft.data.seam import token_ids
from lrft.data.tokenize import Renderer
from lrft.export.as_trained import Message, Rendered
from lrft.registry.errors import DataError
from lrft.registry.json import Json
from lrft.registry.protocols import Tokenizer

SYSTEM: Message = {"role": "system", "content": "Answer briefly, in one sentence."}
TURNS: list[Message] = [
    {"role": "user", "content": "What is 12 + 30, and why?"},
    {"role": "assistant", "content": "42: 12 and 30 add up.\nNaïve, but true."},
    {"role": "user", "content": 'And {{ twice }} that?  Show "code" too.'},
]
PLAIN = 'The year 2026 had 365 days;\n\nnaïve counting {{ says }} "so"  too.'


def in_order(tokenizer: Tokenizer, stop_ids: Iterable[int]) -> list[int]:
    """The ids that end an answer, the tokenizer's own eos first."""
    first = tokenizer.eos_token_id
    return sorted(stop_ids, key=lambda stop: (stop != first, stop))


def render(renderer: Renderer, chat: bool) -> Rendered:
    """As the run's own tokenizer and template write it, up to where the next answer begins.

    Args:
        chat: whether rows are rendered by the template; else the text is a plain one.
    """
    tokenizer, template = renderer.tokenizer, renderer.template
    if not chat:
        return {"messages": [], "text": PLAIN, "ids": token_ids(tokenizer, PLAIN), "date": None}
    try:
        messages = [SYSTEM, *TURNS]
        text = write(template, messages)
    except DataError:  # a template without system messages
        messages = TURNS
        text = write(template, messages)
    day = renderer.today.isoformat() if renderer.asks_for_the_date else None
    return {"messages": messages, "text": text, "ids": token_ids(tokenizer, text), "date": day}


def write(template: ChatTemplate, messages: Sequence[Mapping[str, str]], prompt: bool = True) -> str:
    """What a chat template writes.

    Args:
        prompt: end in the generation prompt.

    Raises:
        DataError: it refuses the conversation.
    """
    said: list[dict[str, Json]] = [{**message} for message in messages]
    return template.render(said, prompt=prompt)


def difference(tokenizer: Tokenizer, expected: Sequence[int], found: Sequence[int]) -> str:
    """Where two lists of token ids part, in words; empty where they are one."""
    if list(expected) == list(found):
        return ""
    place = next((k for k, (a, b) in enumerate(zip(expected, found, strict=False)) if a != b), None)
    if place is None:
        place = min(len(expected), len(found))
    theirs, ours = (_shown(tokenizer, ids, place) for ids in (found, expected))
    return f"token {place} is {theirs} and was {ours} in training"


def _shown(tokenizer: Tokenizer, ids: Sequence[int], place: int) -> str:
    if place >= len(ids):
        return "past the end"
    return f"{ids[place]} {tokenizer.decode([ids[place]])!r}"


def as_messages(found: Mapping[str, object]) -> Rendered:
    """What a record holds, back."""
    messages, ids = found["messages"], found["ids"]
    assert isinstance(messages, list) and isinstance(ids, list)
    date = found.get("date")
    return {
        "messages": messages,
        "text": str(found["text"]),
        "ids": ids,
        "date": None if date is None else str(date),
    }
