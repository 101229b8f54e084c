"""What of a conversation reaches its text, found by rendering it without.

No template is known here. A field reaches the text if leaving it out changes the text, and in full if every text and
number that it holds then stands there, as it is or escaped as in JSON.
"""

from __future__ import annotations

import html
import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from lrft.data.chat import ChatTemplate, Span
from lrft.data.encoded import NOTHING, Notes
from lrft.data.example import Example, Message
from lrft.data.thoughts import THOUGHT, pieces
from lrft.registry.errors import DataError
from lrft.registry.json import Json, to_section

# Fields of a message that change what it says; others, such as a time or a score, are only told.
MEANT = (
    "name",
    "tool_calls",
    "function_call",
    "refusal",
    "tool_plan",
    "citations",
    "audio",
    "image",
    "images",
    "video",
    "videos",
    "documents",
    "tools",
    "functions",
    "prefix",
    *THOUGHT,
)
CALLS = ("tool_calls", "function_call")
NAMES_ONLY = ("id", "type", "index", "tool_call_id")  # tie messages together, and need not be written
PLAIN = ("role", "content", "weight", "tool_call_id")
SPELT = re.compile(r"""["']type["']: ?["']text["']""")


@dataclass(frozen=True)
class Reached:
    """A rendered conversation, to ask what of it stands in the text.

    Attributes:
        text: ends with the last learnt answer.
        spans: where the learnt answers are in it.
    """

    template: ChatTemplate
    example: Example
    text: str
    spans: Sequence[Span]

    def notes(self) -> Notes:
        """What is missing from the text.

        Raises:
            DataError: parts of a message are not written as text.
        """
        self._check_parts()
        found = Notes(left_out=not self._contents())
        names = {name for message in self.example.messages for name in message if name not in PLAIN}
        for name in sorted(names.intersection(MEANT)):
            found = found.joined(self._field(name))
        others = sorted(name for name in names.difference(MEANT) if self._holders(name))
        found = found.joined(Notes(unread=self._inert(others)))
        return found.joined(self._tools())

    def _contents(self) -> bool:
        """Whether the text of every message stands in the text, that of a learnt answer in what is learnt."""
        learnt = {span.turn: span for span in self.spans}
        at = 0
        for turn, message in enumerate(self.example.messages):
            for words in _texts_of(message["content"]):
                if turn in learnt:
                    if not _stands(words, self._learnt(learnt[turn])):
                        return False
                    continue
                # Messages mostly stand in order; one that a template moves is looked for from the beginning.
                found = self.text.find(words, at)
                if found < 0 and not _stands(words, self.text):
                    return False
                at = max(at, found + len(words))
        return True

    def _learnt(self, span: Span) -> str:
        return self.text[span.start : span.end]

    def _holders(self, name: str) -> list[int]:
        """The messages in which the field says something."""
        return [
            k
            for k, said in enumerate(self.example.messages)
            if said.get(name) not in (None, "", [], {}, False)
        ]

    def _field(self, name: str) -> Notes:
        """Whether a field reaches the text: in no message, in some, in all but not in full, or in full."""
        holders = self._holders(name)
        silent = [turn for turn in holders if not self._writes(turn, name)]
        if holders and len(silent) == len(holders) and not any(self._wrote(turn, name) for turn in holders):
            return Notes(unwritten=(name,))
        if all(self._whole(turn, name) for turn in holders if turn not in silent):
            return Notes(left_out=bool(silent))
        # A call that is written in part is another call; what was thought may be shortened.
        return Notes(unwritten=(name,)) if name in CALLS else Notes(left_out=True)

    def _writes(self, turn: int, name: str) -> bool:
        messages = list(self.example.messages)
        messages[turn] = _without(messages[turn], _same(name))
        return self._changes(messages, self.text)

    def _wrote(self, turn: int, name: str) -> bool:
        """Whether the field was in the text as long as its message was the last one."""
        *before, last = self.example.messages[: turn + 1]
        try:
            text = self.template.render([*before, last], self.example.tools)
        except DataError:
            return False
        return self._changes([*before, _without(last, _same(name))], text)

    def _whole(self, turn: int, name: str) -> bool:
        """Whether all that the field holds stands in the text; of several calls each by itself."""
        span = next((span for span in self.spans if span.turn == turn), None)
        text = self._learnt(span) if span else self.text
        value = self.example.messages[turn][name]
        if not all(_stands(leaf, text) for leaf in leaves(value)):
            return False
        if name not in CALLS or not isinstance(value, list) or len(value) < 2:
            return True
        messages = list(self.example.messages)
        fewer = [{**messages[turn], name: value[:k] + value[k + 1 :]} for k in range(len(value))]
        return all(self._changes([*messages[:turn], f, *messages[turn + 1 :]], self.text) for f in fewer)

    def _inert(self, names: list[str]) -> tuple[str, ...]:
        """Those of the fields that the template does not read."""
        if not names or not self._changes([_without(m, names) for m in self.example.messages], self.text):
            return tuple(names)
        if len(names) == 1:
            return ()
        return tuple(name for name in names if self._inert([name]))

    def _tools(self) -> Notes:
        tools = self.example.tools
        if not tools:
            return NOTHING
        if not self._changes(self.example.messages, self.text, tools=()):
            return Notes(unwritten=("tools",))
        named = [to_section(tool.get("function") or tool).get("name") for tool in tools]
        if not all(_stands(name, self.text) for name in named if isinstance(name, str)):
            return Notes(unwritten=("tools",))
        return Notes(left_out=not all(_stands(leaf, self.text) for leaf in _described(tools)))

    def _changes(
        self, messages: Sequence[Message], text: str, tools: Sequence[Message] | None = None
    ) -> bool:
        """Whether these messages are written otherwise than as `text`, or not at all."""
        try:
            return self.template.render(messages, self.example.tools if tools is None else tools) != text
        except DataError:
            return True

    def _check_parts(self) -> None:
        for number, message in enumerate(self.example.messages, 1):
            parts = message["content"]
            if not isinstance(parts, list):
                continue
            texts = _texts_of(parts)
            # A template that takes any content for text writes the list as Python or JSON would.
            spelt = SPELT.search(self.text) and not any(SPELT.search(text) for text in texts)
            if spelt or not all(text in self.text for text in texts):
                raise DataError(
                    f"message {number} ({message['role']}) has content of {len(parts)} parts, which this chat "
                    "template does not render; join them into one text"
                )


def _same(name: str) -> tuple[str, ...]:
    """The fields that go together: templates are given each name that thoughts have."""
    return THOUGHT if name in THOUGHT else (name,)


def _without(message: Message, names: Sequence[str]) -> Message:
    return {key: value for key, value in message.items() if key not in names}


def _texts_of(content: Json) -> list[str]:
    """The texts of a message, white space around them left to the template."""
    return [text.strip() for text in pieces(content) if text.strip()]


def _described(tools: Sequence[Message]) -> Iterator[str]:
    for tool in tools:
        description = to_section(tool.get("function") or tool).get("description")
        if isinstance(description, str):
            yield description


def leaves(value: Json) -> Iterator[str]:
    """The texts and numbers that a field holds, those that only tie messages together left out."""
    if isinstance(value, dict):
        for key, item in value.items():
            if key not in NAMES_ONLY:
                yield from leaves(item)
    elif isinstance(value, list):
        for item in value:
            yield from leaves(item)
    elif isinstance(value, bool):
        yield str(value).lower()
    elif isinstance(value, str | int | float):
        yield str(value)


def _stands(words: str, text: str) -> bool:
    """Whether the words are in the text as they are, or as JSON or HTML escapes them; truth values in any case."""
    words = words.strip()
    if words in text or (words in ("true", "false") and words in text.lower()):
        return True
    plain = json.dumps(words, ensure_ascii=False)[1:-1]
    escaped = json.dumps(words)[1:-1]
    for mark in "<>&'":  # as jinja's own tojson writes them
        escaped = escaped.replace(mark, f"\\u{ord(mark):04x}")
    return any(form in text for form in (plain, json.dumps(words)[1:-1], escaped, html.escape(words)))
