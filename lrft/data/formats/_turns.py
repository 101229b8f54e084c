"""Messages with `role` and `content`, checked."""

from __future__ import annotations

from typing import Any

from lrft.core.errors import DataError

ROLES = ("system", "developer", "user", "assistant", "tool")


def turns_of(messages: Any, column: str) -> list[dict[str, str]]:
    """The turns of a conversation, nothing but role and content.

    Raises:
        DataError: not a list, or the first message that is none.
    """
    if not isinstance(messages, list) or not messages:
        raise DataError(f"column {column!r} must be a list of messages with role and content")
    return [_turn(message, number) for number, message in enumerate(messages, 1)]


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
