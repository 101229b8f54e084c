"""sharegpt: conversations as lists of `from` and `value`."""

from __future__ import annotations

from lrft.data.example import Example, Message, Row
from lrft.data.formats._conversation import CONVERSATION
from lrft.data.formats._format import Format
from lrft.data.formats._turns import SPEAKERS, are_turns, checked, listed, no_list
from lrft.registry.axes import FORMATS
from lrft.registry.config import Field, FormatConfig, Literal
from lrft.registry.errors import DataError
from lrft.registry.json import Json, parse_text

CALL = "function_call"  # says `{"name": ..., "arguments": {...}}`
ROLES = {
    **{name: name for name in ("system", "user", "assistant", "tool")},
    **SPEAKERS,
    CALL: "assistant",
}


@FORMATS.register
class ShareGPT(Format):
    """ShareGPT conversations, lists of turns with `from` and `value`, rendered by the model's chat template.

        {"conversations": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Hello."}]}

    Columns: `column` (conversations), the list; `tools` or `functions`, and `system`, where a row has them. The usual
    speakers (human, gpt, system, tool, ...) are known; `roles` names others.
    Text: what the chat template writes of the turns through the last that is learnt. The system message is the
    conversation's own, else the row's column `system`, else the setting `system`. A turn from `function_call` is the
    model's too, its JSON a call or a list of them. Tools go to the template.
    Learnt: every turn of the model with its stop token (`learn: all`), or only the last (`learn: last`), but for those
    of `weight: 0`, or `train: false`.
    """

    aliases = {
        "conversations vicuna fastchat": "format: sharegpt",
    }

    class Config(FormatConfig):
        column: str = Field("conversations", min_length=1, description="column that holds the list of turns")
        roles: dict[str, Literal["system", "user", "assistant", "tool"]] = Field(
            default_factory=dict, description="speaker -> role, beside the usual human, gpt, system"
        )
        learn: Literal["all", "last"] = Field("all", description="which assistant turns are learnt")
        system: str | None = Field(None, description="system message for conversations that bring none")

    config: Config

    @classmethod
    def guess(cls, row: Row) -> dict[str, Json] | None:
        for column in ("conversations", "messages", "conversation"):
            if are_turns(row.get(column), "from", "value"):
                return {} if column == "conversations" else {"column": column}
        return None

    @property
    def columns(self) -> tuple[str, ...]:
        return (self.config.column,)

    @property
    def optional(self) -> tuple[str, ...]:
        return CONVERSATION

    def asking(self, text: str) -> Row:
        return {self.config.column: [{"from": "human", "value": text}]}

    def example(self, row: Row) -> Example:
        said = listed(self.value(row, self.config.column))
        if not isinstance(said, list) or not said:
            column = self.config.column
            raise DataError(
                f"column {column!r} must be a list of turns with `from` and `value`{no_list(said)}"
            )
        turns = [self._turn(turn, number) for number, turn in enumerate(said, 1)]
        return Example(messages=self.opened(turns, row), learn=self.config.learn, tools=self.tools(row))

    def _turn(self, turn: Json, number: int) -> Message:
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
        ignored = {"from", "value", *self.config.ignore}
        more = {key: value for key, value in turn.items() if value is not None and key not in ignored}
        message = {**more, "role": roles[turn["from"]], "content": turn["value"]}
        if turn["from"] == CALL and CALL not in self.config.roles:
            message |= {"content": "", "tool_calls": _calls(turn["value"], number)}
        return checked(message, number)


def _calls(said: str, number: int) -> list[Message]:
    """The calls that a turn spells out as JSON: one object, or a list of them."""
    try:
        calls = parse_text(said)
    except ValueError as error:
        raise DataError(
            f'turn {number} is from {CALL} and must be JSON such as {{"name": "...", "arguments": {{...}}}} ({error})'
        ) from None
    calls = calls if isinstance(calls, list) else [calls]
    if not calls or not all(isinstance(call, dict) and isinstance(call.get("name"), str) for call in calls):
        raise DataError(
            f'turn {number} is from {CALL} and must be JSON such as {{"name": "...", "arguments": {{...}}}}'
        )
    return [{"type": "function", "function": call} for call in calls]
