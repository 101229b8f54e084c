"""chat: a list of messages in each row, rendered by the model's own chat template."""

from __future__ import annotations

from typing import Any

from lrft.core.axes import FORMATS
from lrft.core.config import Field, Literal, MethodConfig
from lrft.data.example import Example
from lrft.data.formats._format import Format, with_system
from lrft.data.formats._turns import turns_of


@FORMATS.register
class Chat(Format):
    """Messages with `role` and `content`, rendered by the chat template.

    {"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello."}]}
    Learns every assistant turn with its stop token, or only the last; everything else is read only.
    """

    aliases = {
        "messages openai chatml conversational conversation chat_template tokenizer_default": "format: chat",
    }

    class Config(MethodConfig):
        column: str = Field("messages", min_length=1, description="column that holds the list of messages")
        learn: Literal["all", "last"] = Field("all", description="which assistant turns are learnt")
        system: str | None = Field(None, description="system message for conversations that bring none")

    @property
    def columns(self) -> tuple[str, ...]:
        return (self.config.column,)

    def example(self, row: dict[str, Any]) -> Example:
        turns = turns_of(self.value(row, self.config.column), self.config.column)
        return Example(messages=tuple(with_system(turns, self.config.system)), learn=self.config.learn)
