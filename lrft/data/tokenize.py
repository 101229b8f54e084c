"""Rows to token ids, with the mask of what is learnt.

The mask never looks for marker strings: the chat template says where in the text an answer stands (`chat`), and the
tokens are cut where it begins (`drawing`). What is learnt follows, in training as in generation, the same tokens.
"""

from __future__ import annotations

from dataclasses import replace
from datetime import date

from lrft.data.chat import PROBE, ChatTemplate
from lrft.data.drafts import Draft, draft_of, through_last
from lrft.data.drawing import Drawing
from lrft.data.encode import encode_all as encode_all
from lrft.data.encoded import Drawn, Encoded, Known, TooLong, fitted
from lrft.data.example import Example, Message, Row
from lrft.data.features import NO_FEATURES, FeatureColumns
from lrft.data.formats._format import Format
from lrft.data.labels import label_of
from lrft.data.question import Question
from lrft.data.seam import token_ids
from lrft.data.thoughts import marks, said, thought
from lrft.data.windows import windows
from lrft.registry.errors import DataError
from lrft.registry.protocols import Tokenizer


class Renderer:
    """Renders and tokenizes the rows of one format for one model.

    Args:
        tokenizer: a transformers tokenizer.
        format: makes an `Example` of a row.
        stop_ids: tokens that end an answer.
        max_length: longest row in tokens; a pair counts both answers, each with its prompt.
        too_long: what happens to longer rows; `error` leaves them whole, for the gate to report.
        today: the day that chat templates which ask for the date are told; by default the day it is.
        stride: tokens by which windows begin after one another; by default half of `max_length`.
        labels: of the model's score head, where it has one.
        features: what of a row is its features.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        format: Format,
        stop_ids: set[int],
        max_length: int,
        too_long: TooLong = "error",
        today: date | None = None,
        stride: int | None = None,
        labels: tuple[str, ...] = (),
        features: FeatureColumns = NO_FEATURES,
    ) -> None:
        self.tokenizer = tokenizer
        self.format, self.stop_ids = format, stop_ids
        self.max_length = max_length
        self.too_long = too_long
        self.labels, self.features = labels, features
        self.stride = stride or max(1, max_length // 2)
        self.drawing = Drawing(tokenizer, stop_ids)
        self.template = ChatTemplate(tokenizer, stop_ids, today or date.today())
        self.known = Known()

    @property
    def today(self) -> date:
        """The day that chat templates which ask for the date are told."""
        return self.template.today

    @property
    def asks_for_the_date(self) -> bool:
        """Whether a row was rendered by such a template."""
        return self.template.asks_for_the_date

    def encode(self, row: Row) -> Encoded:
        """The row's tokens and mask, within `max_length`; a row that is to be learnt in windows is left whole.

        Raises:
            DataError: the format or the chat template cannot use the row. Which row it is, the caller knows.
        """
        draft = self.draft(row)
        return self._kept(fitted(self._drawn(draft), self.max_length, self.too_long), draft)

    def encodings(self, row: Row) -> list[Encoded]:
        """The same as a list, in which a document that is learnt in windows is one entry for each.

        Raises:
            DataError: see `encode`.
        """
        return self.finished(self.draft(row))

    def draft(self, row: Row) -> Draft:
        """The row as text (`lrft.data.drafts`)."""
        wide = self.too_long == "windows"
        return draft_of(row, self.format, self.template, self.features, bool(self.labels), wide)

    def finished(self, draft: Draft) -> list[Encoded]:
        """The same of a row that is text already.

        Raises:
            DataError: see `encode`.
        """
        drawn = self._drawn(draft)
        if self.too_long != "windows":
            return [self._kept(fitted(drawn, self.max_length, self.too_long), draft)]
        if "documents" in self.format.provides:
            return [self._kept(one, draft) for one in windows(drawn[0], self.max_length, self.stride)]
        if sum(len(document.ids) for document in drawn) > self.max_length:
            raise DataError(
                "data.too_long: windows are for formats whose rows are whole texts, and this row, which has a prompt, "
                f"is longer than {self.max_length} tokens"
            )
        return [self._kept(fitted(drawn, self.max_length, "error"), draft)]

    def question(self, row: Row) -> Question:
        """The row as it is scored; of what the prompt and the answer are made in training, so they are here."""
        return replace(self.example_question(self.format.completed(row)), features=self.features.of(row))

    def example_question(self, example: Example) -> Question:
        """An example as it is scored, as `question` has a row."""
        if not example.messages:
            return self._plain_question(example)
        if not example.learnt:
            prompt = self.template.render(example.messages, example.tools, prompt=True)
            return Question(token_ids(self.tokenizer, prompt), [], "")
        return self._chat_question(through_last(example))

    def asked(self, example: Example, at_once: bool = False) -> list[int]:
        """What generation starts from, of an example whose answer is still to come.

        Args:
            at_once: nothing is thought before it, so what the template then writes (`Question.given`) is included.
        """
        if not example.messages:
            return self.drawing.lead(example.prompt) + token_ids(self.tokenizer, example.prompt)
        if at_once:
            answer: Message = {"role": "assistant", "content": PROBE}
            whole = replace(example, messages=(*example.messages, answer), learn="last")
            return self._chat_question(whole).prompt
        return token_ids(self.tokenizer, self.template.render(example.messages, example.tools, prompt=True))

    def prompt_ids(self, row: Row) -> list[int]:
        """What generation starts from; of raw text, what the tokenizer puts in front."""
        return self.question(row).prompt

    def reference(self, row: Row) -> str:
        """The text of the (last, chosen) answer; empty for a conversation without one."""
        return self.question(row).reference

    def _drawn(self, draft: Draft) -> list[Drawn]:
        """The row before any cut of it as a whole: one document, the two of a pair, or the texts to embed."""
        found = []
        for one in draft.documents:
            plain = one.spans is None
            drawn = (
                self.drawing.plain(one.example)
                if plain
                else self.drawing.chat(one.example, one.text, one.spans or [])
            )
            if one.example.embedded:
                drawn = drawn.read_whole(one.example.most_tokens)
            found.append(drawn.given(label_of(one.example.label, self.labels)))
        return found

    def _kept(self, encoded: Encoded, draft: Draft) -> Encoded:
        made = replace(encoded, notes=draft.notes, features=draft.features, wanted=draft.wanted)
        return self.known.shared(made)

    def _plain_question(self, example: Example) -> Question:
        drawn = self.drawing.plain(example)
        prompt = self.asked(Example(prompt=example.prompt)) if drawn.merged else drawn.ids[: drawn.begin]
        return Question(prompt, self._answer(drawn), example.completion)

    def _chat_question(self, example: Example) -> Question:
        text = self.template.render(example.messages, example.tools)
        spans = self.template.answers(example, text)
        drawn, last, message = self.drawing.chat(example, text, spans), spans[-1], example.messages[-1]
        given = text[last.start : last.words]
        between = None if given else marks(message, text[last.start : last.end])
        prompt = drawn.ids[: drawn.begin]
        if drawn.merged:
            prompt = token_ids(self.tokenizer, text[: last.words])
        answer, reference = self._answer(drawn), thought(message)[1]
        if not isinstance(message["content"], str) or message.get("tool_calls"):
            reference = said(self.tokenizer, answer, between)  # as the template writes it
        return Question(prompt, answer, reference, given, between)

    def _answer(self, drawn: Drawn) -> list[int]:
        learnt = zip(drawn.ids[drawn.begin :], drawn.supervised[drawn.begin :], strict=True)
        answer = [token for token, wanted in learnt if wanted]
        while answer and answer[-1] in self.stop_ids:
            answer.pop()
        return answer
