"""sharegpt: conversations as lists of `from` and `value`."""

from __future__ import annotations

from typing import Any

from lrft.core.axes import FORMATS
from lrft.core.config import Field, Literal, MethodConfig
from lrft.core.errors import DataError
from lrft.data.example import Example
from lrft.data.formats._format import Format, with_system

ROLES = {
    "system": "system",
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "assistant": "assistant",
    "chatgpt": "assistant",
    "model": "assistant",
    "bot": "assistant",
    "tool": "tool",
}


@FORMATS.register
class ShareGPT(Format):
    """ShareGPT conversations, rendered by the chat template.

    {"conversations": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Hello."}]}
    Learns every turn of the model with its stop token, or only the last.
    """

    aliases = {
        "conversations vicuna fastchat": "format: sharegpt",
    }

    class Config(MethodConfig):
        column: str = Field("conversations", min_length=1, description="column that holds the list of turns")
        roles: dict[str, Literal["system", "user", "assistant", "tool"]] = Field(
            default_factory=dict, description="speaker -> role, beside the usual human, gpt, system"
        )
        learn: Literal["all", "last"] = Field("all", description="which assistant turns are learnt")
        system: str | None = Field(None, description="system message for conversations that bring none")

    @property
    def columns(self) -> tuple[str, ...]:
        return (self.config.column,)

    def example(self, row: dict[str, Any]) -> Example:
        said = self.value(row, self.config.column)
        if not isinstance(said, list) or not said:
            raise DataError(f"column {self.config.column!r} must be a list of turns with `from` and `value`")
        turns = [self._turn(turn, number) for number, turn in enumerate(said, 1)]
        return Example(messages=tuple(with_system(turns, self.config.system)), learn=self.config.learn)

    def _turn(self, turn: Any, number: int) -> dict[str, str]:
        if not isinstance(turn, dict) or "from" not in turn or "value" not in turn:
            keys = list(turn) if isinstance(turn, dict) else []
            hint = "; `role` and `content` are read by data.format: chat" if "role" in keys else ""
            held = f"it has {keys}" if keys else f"it is a {type(turn).__name__}"
            raise DataError(f"turn {number} needs `from` and `value`, {held}{hint}")
        roles = {**ROLES, **self.config.roles}
        if not isinstance(turn["from"], str) or turn["from"] not in roles:
            raise DataError(
                f"turn {number} is from {turn['from']!r}; known are {', '.join(roles)}; "
                "name others in data.format.roles"
            )
        if not isinstance(turn["value"], str):
            raise DataError(
                f"turn {number} has a value of type {type(turn['value']).__name__}; only text can be learnt"
            )
        return {"role": roles[turn["from"]], "content": turn["value"]}
