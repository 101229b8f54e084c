"""unpaired: a prompt, one answer, and whether that is one to give."""

from __future__ import annotations

from dataclasses import replace

from lrft.data.example import Example, Row
from lrft.data.formats._answered import Answered
from lrft.data.formats._conversation import CONVERSATION, asked, open_question
from lrft.registry.axes import FORMATS
from lrft.registry.config import ADDED, Annotated, Field, FormatConfig, Literal
from lrft.registry.errors import DataError
from lrft.registry.json import Json


@FORMATS.register
class Unpaired(Answered):
    """A prompt with one answer that is judged by itself, for objectives that draw near to it or away from it.

        {"prompt": "2 + 2 =", "completion": " 4", "label": true}
        {"prompt": [{"role": "user", ...}], "completion": [{"role": "assistant", ...}], "label": false}

    Columns: `prompt` and `completion` name the two, both text or the answer a list of messages; `label` the column of
    the judgement, true or false (1 or 0), which is not read where `wanted` says it of all rows; `tools` or `functions`,
    and `system`, where a row has them.
    Text: text is joined as it is (`render: plain`, the setting `system` as a first paragraph) or rendered by the chat
    template (`render: chat`); messages always are.
    Learnt: the answer and its stop token, whichever way the objective has it. Scores on held-out rows are of every
    answer alike, wanted or not; sources of a list are scored one by one as well. With `query` a row is two texts: the
    answer, and the answer with a question after it, to which one of `replies` is learnt, the second where the answer is
    wanted: a next message in a chat, else a next paragraph and the reply behind a space.
    """

    aliases = {
        "unpaired_preference binary_preference": "format: unpaired",
    }
    provides = {"judged"}

    class Config(FormatConfig):
        prompt: str = Field(
            "prompt", min_length=1, description="column of the prompt; not read where answers hold it"
        )
        completion: str = Field("completion", min_length=1, description="column of the answer")
        label: str = Field("label", min_length=1, description="column that says whether the answer is wanted")
        wanted: bool | None = Field(
            None, description="whether the answers of all rows are wanted, in the place of the column"
        )
        query: Annotated[str | None, ADDED] = Field(
            None,
            min_length=1,
            description="question after an answer whether it is right, for objectives that learn the reply; or null",
        )
        replies: Annotated[list[str], ADDED] = Field(
            ["i", "ii"], min_length=2, max_length=2, description="the replies to it, no and yes"
        )
        render: Literal["chat", "plain"] = Field(
            "plain", description="text as it is, or through the model's chat template"
        )
        system: str | None = Field(
            None, description="system message where there is none; in plain rendering a first paragraph"
        )

    config: Config

    @classmethod
    def guess(cls, row: Row) -> dict[str, Json] | None:
        return {} if "completion" in row and isinstance(row.get("label"), bool) else None

    @property
    def columns(self) -> tuple[str, ...]:
        return self.answers

    @property
    def optional(self) -> tuple[str, ...]:
        return (self.config.prompt, *CONVERSATION)

    @property
    def answers(self) -> tuple[str, ...]:
        label = (self.config.label,) if self.config.wanted is None else ()
        return (self.config.completion, *label)

    @property
    def questions(self) -> tuple[str, ...]:
        return (self.config.prompt,)

    def asked(self, row: Row) -> Example:
        in_messages = self.asked_in_messages(row, self.config.prompt)
        return in_messages or open_question(self._answered({**row, self.config.completion: ""}))

    def example(self, row: Row) -> Example:
        answered, wanted = self._answered(row), self._judged(row)
        asked = None if self.config.query is None else self._asking(answered, self.config.replies[wanted])
        return replace(answered, rejected=asked, wanted=wanted)

    def _asking(self, answered: Example, reply: str) -> Example:
        """The answer, read, the question whether it is right, and the reply, which is learnt."""
        query = str(self.config.query)
        if answered.messages:
            return replace(answered, messages=(*answered.messages, *asked(query, reply)), learn="last")
        text = f"{answered.prompt}{answered.completion}\n\n{query}"
        return replace(answered, prompt=text, completion=f" {reply}")

    def _judged(self, row: Row) -> bool:
        if self.config.wanted is not None:
            return self.config.wanted
        value = self.value(row, self.config.label)
        if value is True or value is False or (type(value) is int and value in (0, 1)):
            return bool(value)
        raise DataError(
            f"column {self.config.label!r} holds {value!r}; whether an answer is wanted is true or false (or 1 or 0)"
        )

    def _answered(self, row: Row) -> Example:
        config = self.config
        if isinstance(self.value(row, config.completion), list):
            turns = self.conversation(row, config.prompt, config.completion)
            if turns[-1].get("weight") == 0:
                raise DataError(
                    f"column {config.completion!r}: the answer has weight 0, and it is judged; remove it"
                )
            return Example(messages=turns, learn="last", tools=self.tools(row))
        if isinstance(row.get(config.prompt), list):
            return self._after_messages(row)
        prompt, completion = self.text(row, config.prompt), self.text(row, config.completion)
        example = self.pair(prompt, completion, self.system(row))
        return replace(example, tools=self.tools_beside(example, row))

    def _after_messages(self, row: Row) -> Example:
        """The prompt is messages and the answer a text."""
        answer = [{"role": "assistant", "content": self.text(row, self.config.completion)}]
        turns = self.conversation(
            {**row, self.config.completion: answer}, self.config.prompt, self.config.completion
        )
        return Example(messages=turns, learn="last", tools=self.tools(row))
