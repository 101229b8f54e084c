"""chat: a list of messages in each row, rendered by the model's own chat template."""

from __future__ import annotations

from typing import Any

from lrft.core.axes import FORMATS
from lrft.core.config import Field, Literal, MethodConfig
from lrft.core.errors import DataError
from lrft.data.example import Example
from lrft.data.formats._format import Format, with_system

ROLES = ("system", "developer", "user", "assistant", "tool")


@FORMATS.register
class Chat(Format):
    """Messages with `role` and `content`, rendered by the chat template.

    {"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello."}]}
    Learns every assistant turn with its stop token, or only the last; everything else is read only.
    """

    class Config(MethodConfig):
        column: str = Field("messages", min_length=1, description="column that holds the list of messages")
        learn: Literal["all", "last"] = Field("all", description="which assistant turns are learnt")
        system: str | None = Field(None, description="system message for conversations that bring none")

    @property
    def columns(self) -> tuple[str, ...]:
        return (self.config.column,)

    def example(self, row: dict[str, Any]) -> Example:
        messages = self.value(row, self.config.column)
        if not isinstance(messages, list) or not messages:
            raise DataError(f"column {self.config.column!r} must be a list of messages with role and content")
        turns = [_turn(message, number) for number, message in enumerate(messages, 1)]
        return Example(messages=tuple(with_system(turns, self.config.system)), learn=self.config.learn)


def _turn(message: Any, number: int) -> dict[str, str]:
    if not isinstance(message, dict) or "role" not in message or "content" not in message:
        keys = list(message) if isinstance(message, dict) else []
        hint = "; `from` and `value` are read by data.format: sharegpt" if "from" in keys else ""
        held = f"it has {keys}" if keys else f"it is a {type(message).__name__}"
        raise DataError(f"message {number} needs role and content, {held}{hint}")
    role, content = message["role"], message["content"]
    if role not in ROLES:
        raise DataError(
            f"message {number} has role {role!r}; roles are {', '.join(ROLES)}; "
            "data.format: sharegpt maps other names"
        )
    if not isinstance(content, str):
        raise DataError(
            f"message {number} ({role}) has content of type {type(content).__name__}; only text can be learnt"
        )
    return {"role": role, "content": content}
