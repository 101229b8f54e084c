"""chat: a list of messages in each row, rendered by the model's own chat template."""

from __future__ import annotations

from lrft.data.example import Example, Row
from lrft.data.formats._conversation import CONVERSATION
from lrft.data.formats._format import Format
from lrft.data.formats._turns import are_turns, turns_of
from lrft.registry.axes import FORMATS
from lrft.registry.config import Field, FormatConfig, Literal
from lrft.registry.json import Json


@FORMATS.register
class Chat(Format):
    """Conversations as lists of messages with `role` and `content`, rendered by the model's chat template.

        {"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello."}]}

    Columns: `column` (messages), the list, which may be JSON text; `tools` or `functions`, and `system`, where a row
    has them. Of a message every field but those in `ignore`; the usual other names of roles (human, ai, gpt,
    function, ...) are known.
    Text: what the chat template writes of the messages through the last that is learnt. The system message is the
    conversation's own, else the row's column `system`, else the setting `system`. Calls, reasoning and names go to the
    template, as do tools, the row's or else those of the setting `tools`.
    Learnt: every assistant turn with its stop token (`learn: all`), or only the last (`learn: last`); everything else
    is read only, and so is a turn with `weight: 0`, or `train: false`.
    """

    aliases = {
        "messages openai chatml conversational conversation chat_template tokenizer_default": "format: chat",
    }

    class Config(FormatConfig):
        column: str = Field("messages", min_length=1, description="column that holds the list of messages")
        learn: Literal["all", "last"] = Field("all", description="which assistant turns are learnt")
        system: str | None = Field(None, description="system message for conversations that bring none")

    config: Config

    @classmethod
    def guess(cls, row: Row) -> dict[str, Json] | None:
        for column in ("messages", "conversations", "conversation"):
            if are_turns(row.get(column), "role", "content"):
                return {} if column == "messages" else {"column": column}
        return None

    @property
    def columns(self) -> tuple[str, ...]:
        return (self.config.column,)

    @property
    def optional(self) -> tuple[str, ...]:
        return CONVERSATION

    def asking(self, text: str) -> Row:
        return {self.config.column: [{"role": "user", "content": text}]}

    def example(self, row: Row) -> Example:
        turns = turns_of(self.value(row, self.config.column), self.config.column, self.config.ignore)
        return Example(messages=self.opened(turns, row), learn=self.config.learn, tools=self.tools(row))
