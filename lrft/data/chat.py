"""A conversation as text by the chat template, and where in it the answers stand.

No marker strings are looked for: an answer is what the template writes between the generation prompt and the end of
the turn, found by rendering the conversation up to either.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date, datetime, time, tzinfo

from jinja2 import TemplateError, TemplateSyntaxError

from lrft.data.as_transformers import clock_stopped, within_limits
from lrft.data.example import Example, Message
from lrft.data.template_budget import TooMuch
from lrft.data.thoughts import thought
from lrft.registry.errors import DataError
from lrft.registry.protocols import Tokenizer

PROBE = "Qx7"  # an answer that no template writes by itself
TRIED = 64  # messages that are tried one after another for the first that a template stops at
SHOWN = 300  # characters of what a template says


@dataclass(frozen=True)
class Span:
    """One learnt answer in the text.

    Attributes:
        turn: index of the message.
        start, end: characters from the end of the generation prompt to the end of the turn.
        words: where the answer's own text begins, after what the template writes before any answer.
    """

    turn: int
    start: int
    words: int
    end: int


class ChatTemplate:
    """The chat template of a tokenizer, and the tokens that end an answer.

    Attributes:
        today: the day that a template which asks for the date is told: a resumed run must see what the first one saw.
        asks_for_the_date: whether one asked so far.
        used: whether anything was rendered so far.
    """

    def __init__(self, tokenizer: Tokenizer, stop_ids: set[int], today: date) -> None:
        self.tokenizer = tokenizer
        self.today = today
        self.asks_for_the_date = False
        self.used = False
        stops = tokenizer.convert_ids_to_tokens(sorted(stop_ids))
        self.stops = tuple(str(stop) for stop in stops if stop is not None)
        special = [str(token) for token in tokenizer.added_tokens_decoder.values() if token.special]
        marks = {*self.stops, *special, *tokenizer.all_special_tokens}
        self.marks = tuple(sorted(mark for mark in marks if mark.strip()))
        # The longest first and none given back: marks that begin alike would be tried in every combination.
        ends = "|".join(map(re.escape, sorted(self.marks, key=len, reverse=True)))
        self._ends = re.compile(rf"(?:\s|{ends})*+" if ends else r"\s*+")
        self._scaffold = ""  # the one met last, since most rows share it
        self._clock = type("Stopped", (datetime,), {"now": staticmethod(self._now)})

    def render(self, messages: Sequence[Message], tools: Sequence[Message] = (), prompt: bool = False) -> str:
        """The text of the conversation.

        Args:
            prompt: end in the generation prompt.

        Raises:
            DataError: the template cannot write it; names the first message that it stops at.
        """
        if not self.tokenizer.chat_template:
            raise DataError(
                "data.format: the model's tokenizer has no chat template; name one as data.template, such as plain, or "
                "use a format with render: plain"
            )
        self.used = True
        try:
            text = self._written(messages, tools, prompt)
            text.encode()  # half a character, which an escape in the template makes, is taken by no tokenizer
            return text
        except TooMuch as error:
            raise DataError(
                f"the chat template is stopped: {error}; use another one (data.template)"
            ) from error
        except TemplateSyntaxError as error:
            raise DataError(
                f"line {error.lineno} of the chat template is no Jinja: {_brief(error)}"
            ) from error
        except Exception as error:  # a template is a program of its own and may fail in any way
            place = self._place(messages, tools)
            parts = max((len(m["content"]) for m in messages if isinstance(m["content"], list)), default=0)
            joined = (
                f"; it may take texts alone, and a content has {parts} parts: join them into one text"
                if parts
                else ""
            )
            raise DataError(f"{place}{_complaint(error)}{joined}") from error

    def answers(self, example: Example, text: str) -> list[Span]:
        """Every learnt answer of the conversation whose text is `text`, which ends with the last of them.

        Raises:
            DataError: names a message whose answer cannot be told from its prompt.
        """
        spans = []
        for turn in example.learnt:
            prompt = self._prompt(example, turn, text)
            end = self._end(example, turn, text, len(prompt))
            words = len(prompt) + len(self._before_words(example, turn, prompt, text[len(prompt) : end]))
            spans.append(Span(turn, len(prompt), words, end))
        return spans

    def _written(self, messages: Sequence[Message], tools: Sequence[Message], prompt: bool) -> str:
        said = [{key: value for key, value in message.items() if key != "weight"} for message in messages]
        # As a batch of one, which may be a conversation without any message.
        with clock_stopped(self._clock), within_limits():
            written = self.tokenizer.apply_chat_template(
                [said], tools=list(tools) or None, tokenize=False, add_generation_prompt=prompt
            )
        return str(written[0])

    def _now(self, zone: tzinfo | None = None) -> datetime:
        self.asks_for_the_date = True
        return datetime.combine(self.today, time(), zone)

    def _place(self, messages: Sequence[Message], tools: Sequence[Message]) -> str:
        """The first message that the template cannot write; of a long conversation, one before which it can."""
        last, known = len(messages), 0  # the first `known` messages can be written
        while last > known + 1:
            number = known + 1 if last - known <= TRIED else (known + last) // 2
            try:
                self._written(messages[:number], tools, False)
                known = number
            except Exception:
                last = number
        return f"message {last} ({messages[last - 1]['role']}): " if messages else ""

    def _prompt(self, example: Example, turn: int, text: str) -> str:
        """The text up to an answer."""
        if turn == 0:
            return self._opening(text)
        prompt = self.render(example.messages[:turn], example.tools, prompt=True)
        if text.startswith(prompt):
            return prompt
        alone = self.render(example.messages[: turn + 1], example.tools)
        if alone != text and alone.startswith(prompt):
            raise self._elsewise(turn)
        raise DataError(
            f"message {turn + 1}: the chat template writes the prompt of this answer differently once "
            "the answer is there, so what is learnt would never be asked; use another chat template"
        )

    def _opening(self, text: str) -> str:
        """What is asked where nothing was said yet, by a template that has a generation prompt then."""
        try:
            prompt = self._written((), (), True)
            asks = prompt != self._written((), (), False)
        except Exception:
            prompt, asks = "", False
        if not asks or not text.startswith(prompt):
            raise DataError(
                "message 1 (assistant): the chat template has no prompt for an answer that nothing comes before; "
                "put a message in front, or write weight: 0 into this one, so that it is read only"
            )
        return prompt

    def _end(self, example: Example, turn: int, text: str, start: int) -> int:
        """One past an answer: what of its rendering as the last one stays when the conversation goes on."""
        if turn == len(example.messages) - 1:
            return len(text)
        through = self.render(example.messages[: turn + 1], example.tools)
        content = example.messages[turn]["content"]
        own = content.strip() if isinstance(content, str) else None
        words = -1 if own is None else through.rfind(own, start)
        least = start if own is None or words < 0 else words + len(own)
        dropped = set()
        while not text.startswith(through):
            mark = next((mark for mark in self.marks if through.endswith(mark)), "")
            dropped.add(mark)
            shorter = through.removesuffix(mark) if mark else through.rstrip()
            if not least <= len(shorter) < len(through):
                raise self._elsewise(turn)
            through = shorter
        rest = text[len(through) :]
        if dropped and not self._closed(through, rest, dropped, example.messages[turn + 1]):
            raise self._elsewise(turn)
        # A template may write the stop token as the beginning of what follows.
        return len(through) + len(next((stop for stop in self.stops if rest.startswith(stop)), ""))

    def _closed(self, through: str, rest: str, dropped: set[str], following: Message) -> bool:
        """Whether an answer without the end marks that were dropped is whole: what follows is not more of it."""
        said = following["content"]
        between = rest[: max(rest.find(said.strip()), 0)] if isinstance(said, str) else ""
        later = any(mark and mark in between for mark in dropped)
        starts = self._ends.match(rest)
        return not later and (through.endswith((*self.marks, "\n")) or bool(starts and starts.end()))

    def _elsewise(self, turn: int) -> DataError:
        return DataError(
            f"message {turn + 1}: the chat template rewrites this answer when the conversation goes on; "
            "set data.format.learn: last"
        )

    def _before_words(self, example: Example, turn: int, prompt: str, answer: str) -> str:
        """What the template itself writes after the generation prompt, before an answer that nothing is thought for.

        Such as an empty block of thoughts; nothing of the row is in it. Empty where there is only white space.
        """
        message = example.messages[turn]
        body = thought(message)[1].strip()
        written = answer.lstrip()
        if body and written.startswith(body) and self._ends.fullmatch(written, len(body)):
            return ""
        if body and self._scaffold and answer.startswith(self._scaffold + body):
            return self._scaffold
        probe: Message = {"role": "assistant", "content": PROBE}
        try:
            shown = self.render([*example.messages[:turn], probe], example.tools)
        except DataError:
            return ""
        found = shown[len(prompt) : shown.rfind(PROBE)] if shown.startswith(prompt) else ""
        if not found.strip() or not answer.startswith(found):
            return ""
        self._scaffold = found
        return found


def _complaint(error: Exception) -> str:
    if isinstance(error, TemplateError):
        return f"the chat template refuses the conversation: {_brief(error)}"
    if isinstance(error, RecursionError):
        return "the chat template fails on the conversation: it calls itself without end"
    return f"the chat template fails on the conversation: {type(error).__name__}: {_brief(error)}"


def _brief(error: Exception) -> str:
    """What an error says, on one line."""
    text = str(error.message or error) if isinstance(error, TemplateError) else str(error)
    words = " ".join(text[: 2 * SHOWN].split())
    return words if len(words) <= SHOWN else f"{words[:SHOWN]}..."
