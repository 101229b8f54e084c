"""prompt_completion: two columns, texts that are joined exactly as they are, or messages."""

from __future__ import annotations

from dataclasses import replace

from lrft.data.example import Example, Message, Row
from lrft.data.formats._answered import Answered
from lrft.data.formats._conversation import CONVERSATION
from lrft.data.formats._turns import are_turns
from lrft.registry.axes import FORMATS
from lrft.registry.config import Field, FormatConfig, Literal
from lrft.registry.errors import DataError
from lrft.registry.json import Json


@FORMATS.register
class PromptCompletion(Answered):
    """A prompt and its completion, two columns, joined exactly as they are.

        {"prompt": "2 + 2 =", "completion": " 4"}
        {"prompt": [{"role": "user", ...}], "completion": [{"role": "assistant", ...}]}

    Columns: `prompt` and `completion` name the two, text or lists of messages; `system`, and `tools` or `functions`,
    where a row has them.
    Text: with `render: plain` prompt and completion with nothing between them: a space belongs to the completion; the
    system message, the row's or else the setting `system`, is a first paragraph. With `render: chat` all three are
    messages in the chat template, in which messages always are.
    Learnt: the completion and a stop token; of messages every answer of the completion, and none of the prompt.
    """

    aliases = {
        "completion prompt_answer input_target": "format: prompt_completion",
        "prompt_response": "format: {method: prompt_completion, completion: response}",
        "prompt_output": "format: {method: prompt_completion, completion: output}",
    }

    class Config(FormatConfig):
        prompt: str = Field("prompt", min_length=1, description="column of the prompt")
        completion: str = Field("completion", min_length=1, description="column of the completion")
        render: Literal["chat", "plain"] = Field(
            "plain", description="as it is, or through the model's chat template"
        )
        system: str | None = Field(None, description="system message; in plain rendering a first paragraph")

    config: Config

    @classmethod
    def guess(cls, row: Row) -> dict[str, Json] | None:
        answers = [name for name in ("completion", "response", "output", "answer") if name in row]
        if len(answers) != 1 or not all(_is_said(row.get(name)) for name in ("prompt", answers[0])):
            return None
        if isinstance(row[answers[0]], list) and isinstance(row.get("label"), bool):
            return None  # which is a judgement
        return {} if answers == ["completion"] else {"completion": answers[0]}

    @property
    def columns(self) -> tuple[str, ...]:
        return (self.config.prompt, self.config.completion)

    @property
    def optional(self) -> tuple[str, ...]:
        return CONVERSATION

    @property
    def answers(self) -> tuple[str, ...]:
        return (self.config.completion,)

    def asked(self, row: Row) -> Example:
        return self.asked_in_messages(row, self.config.prompt) or super().asked(row)

    def example(self, row: Row) -> Example:
        if any(isinstance(self.value(row, name), list) for name in self.columns):
            return Example(messages=self._messages(row), learn="all", tools=self.tools(row))
        prompt, completion = (self.text(row, name) for name in self.columns)
        example = self.pair(prompt, completion, self.system(row))
        return replace(example, tools=self.tools_beside(example, row))

    def _messages(self, row: Row) -> tuple[Message, ...]:
        """The prompt's, to be read only, and the completion's."""
        column = self.config.completion
        as_text = not isinstance(row[column], list)
        given = {**row, column: [answer(self.text(row, column))]} if as_text else row
        return self.conversation(given, self.config.prompt, column)

    def conversation(self, row: Row, prompt: str, column: str) -> tuple[Message, ...]:
        """Unlike answers that are compared, a completion never holds its prompt."""
        said, asked = self.turns(row, column), self.asked_with(row, prompt)
        if said[-1]["role"] != "assistant":
            last = said[-1]["role"]
            raise DataError(
                f"column {column!r} ends in a message of role {last}; the last one must be an answer"
            )
        read = [{**turn, "weight": 0} if turn["role"] == "assistant" else turn for turn in asked]
        return self.opened([*read, *said], row)


def answer(text: str) -> Message:
    """A text as an answer."""
    return {"role": "assistant", "content": text}


def _is_said(value: Json) -> bool:
    """Whether it is a text, or a list of messages; an answer may be a number too."""
    return are_turns(value, "role", "content") if isinstance(value, list) else value is not None
