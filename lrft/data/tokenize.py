"""Rows to token ids, with the mask of what is learnt.

The mask never looks for marker strings. The text up to an answer and the text with it are tokenized, and the
answer begins where the first ends. Where the two disagree at the seam, because a token spans it, character
offsets decide: a token is a target if and only if it starts at or after the boundary.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from lrft.core.errors import DataError
from lrft.data.encoded import Drawn, Encoded, TooLong, fitted
from lrft.data.example import Example
from lrft.data.formats._format import Format
from lrft.data.seam import Joint, token_ids
from lrft.data.sources import Rows

Row = dict[str, Any]


class Renderer:
    """Renders and tokenizes the rows of one format for one model.

    Args:
        tokenizer: a transformers tokenizer.
        format: makes an `Example` of a row.
        stop_ids: tokens that end an answer.
        max_length: longest row in tokens; a pair counts both answers, each with its prompt.
        too_long: what happens to longer rows; `error` leaves them whole, for the gate to report.
    """

    def __init__(
        self, tokenizer: Any, format: Format, stop_ids: set[int], max_length: int, too_long: TooLong = "error"
    ) -> None:
        self.tokenizer = tokenizer
        self.format = format
        self.stop_ids = stop_ids
        self.max_length = max_length
        self.too_long = too_long
        self.prefix = _prefix(tokenizer)
        self._known_ids: dict[int, int] = {}

    def encode(self, row: Row) -> Encoded:
        """The row's tokens and mask, within `max_length`.

        Raises:
            DataError: the format or the chat template cannot use the row. Which row it is, the caller knows.
        """
        example = self.format.example(row)
        encoded = fitted([self._drawn(e) for e in example.answers()], self.max_length, self.too_long)
        # One int object per distinct id: a list then costs 8 bytes a token instead of 36.
        return replace(encoded, input_ids=[self._known_ids.setdefault(i, i) for i in encoded.input_ids])

    def prompt_ids(self, row: Row) -> list[int]:
        """What generation starts from: everything before the (last, chosen) answer, generation prompt included.

        For raw text this is what the tokenizer puts in front, which may be nothing.
        """
        example = self.format.example(row)
        if not example.messages:
            return self._lead(example.prompt) + token_ids(self.tokenizer, example.prompt)
        turns = _answers(example)
        before = example.messages[: turns[-1]] if turns else example.messages
        return token_ids(self.tokenizer, self._render(before, prompt=True))

    def reference(self, row: Row) -> str:
        """The text of the (last, chosen) answer; empty for a conversation without one."""
        example = self.format.example(row)
        if not example.messages:
            return example.completion
        turns = _answers(example)
        return example.messages[turns[-1]]["content"] if turns else ""

    def _drawn(self, example: Example) -> Drawn:
        return self._chat(example) if example.messages else self._plain(example)

    def _plain(self, example: Example) -> Drawn:
        joint = Joint(self.tokenizer, example.prompt + example.completion)
        lead, bos = self._lead(joint.text), self.tokenizer.bos_token_id
        start, merged = joint.cut(example.prompt) if example.prompt else (0, False)
        ids = lead + joint.ids
        front = _leading(ids, bos)
        # A tokenizer that adds none leaves the beginning to the text.
        extra = front - self.prefix.count(bos) if self.prefix else 0
        if not joint.ids or ids[-1] not in self.stop_ids:
            ids.append(self._eos())
        supervised = [k > 0 and k >= start + len(lead) for k in range(len(ids))]
        return Drawn(ids, supervised, front, extra, merged)

    def _chat(self, example: Example) -> Drawn:
        answers = _answers(example)
        messages = example.messages[: answers[-1] + 1] if answers else example.messages
        joint = Joint(self.tokenizer, self._render(messages))
        supervised, merged = [False] * len(joint.ids), False
        for turn in answers if example.learn == "all" else answers[-1:]:
            before, through = self._seams(messages, turn, joint.text)
            (start, spanned), (end, _) = joint.cut(before), joint.cut(through)
            merged = merged or spanned
            for k in range(max(start, 1), self._stopped(joint.ids, start, end)):
                supervised[k] = True
        bos, mark = self.tokenizer.bos_token_id, self.tokenizer.bos_token
        extra = 0
        if bos is not None:
            written = joint.text.count(mark) - sum(message["content"].count(mark) for message in messages)
            twice = max(_leading(joint.ids, bos) - 1, 0)
            extra = joint.ids.count(bos) - written + twice
        return Drawn(joint.ids, supervised, _leading(joint.ids, bos), extra, merged)

    def _seams(self, messages: Sequence[dict[str, str]], turn: int, text: str) -> tuple[str, str]:
        """The text up to the answer of `turn`, and the text through it; both begin `text`."""
        before = self._render(messages[:turn], prompt=True)
        through = text if turn == len(messages) - 1 else self._render(messages[: turn + 1])
        if not through.startswith(before):
            raise DataError(
                f"message {turn + 1}: the chat template writes the prompt of this answer differently once "
                "the answer is there, so what is learnt would never be asked; use another chat template"
            )
        if not text.startswith(through):
            raise DataError(
                f"message {turn + 1}: the chat template rewrites this answer when the conversation goes on; "
                "set data.format.learn: last"
            )
        return before, through

    def _stopped(self, ids: list[int], start: int, end: int) -> int:
        """One past the last stop token of an answer: what the template writes after it is not learnt."""
        stops = [k for k in range(start, end) if ids[k] in self.stop_ids]
        return stops[-1] + 1 if stops else end

    def _render(self, messages: Sequence[dict[str, str]], prompt: bool = False) -> str:
        from jinja2 import TemplateError

        if not self.tokenizer.chat_template:
            raise DataError(
                "data.format: the model's tokenizer has no chat template; use a format with render: plain"
            )
        try:
            text = self.tokenizer.apply_chat_template(
                list(messages), tokenize=False, add_generation_prompt=prompt
            )
        except TemplateError as error:
            raise DataError(
                f"the chat template refuses the conversation: {error.message or error}"
            ) from error
        return str(text)

    def _lead(self, text: str) -> list[int]:
        """What the tokenizer puts before a document, unless the text begins with it already."""
        bos = self.tokenizer.bos_token
        return [] if bos and text.startswith(bos) else list(self.prefix)

    def _eos(self) -> int:
        if self.tokenizer.eos_token_id is None:
            raise DataError(
                "model.name: the tokenizer has no end-of-text token, so plain text could never stop"
            )
        return int(self.tokenizer.eos_token_id)


def encode_all(
    rows: Rows, renderer: Renderer, progress: Callable[[int, int], None] | None = None
) -> list[Encoded]:
    """Every row in order; `progress` hears (rows done, rows in all).

    Raises:
        DataError: a row cannot be used; the message begins with where it is.
    """
    encoded: list[Encoded] = []
    for index, row in enumerate(rows):
        try:
            encoded.append(renderer.encode(row))
        except DataError as error:
            raise DataError(f"{rows.where(index)}: {error}") from error
        if progress is not None:
            progress(index + 1, len(rows))
    return encoded


def _prefix(tokenizer: Any) -> list[int]:
    """What the tokenizer puts before a text when it adds special tokens, usually one BOS or nothing."""
    bare = token_ids(tokenizer, "a")
    full = list(tokenizer("a", add_special_tokens=True, verbose=False)["input_ids"])
    found = next((k for k in range(len(full)) if full[k : k + len(bare)] == bare), 0)
    return full[:found]


def _answers(example: Example) -> list[int]:
    return [k for k, message in enumerate(example.messages) if message["role"] == "assistant"]


def _leading(ids: list[int], bos: int | None) -> int:
    """How many BOS tokens the row begins with."""
    return next((k for k, token in enumerate(ids) if token != bos), len(ids))
