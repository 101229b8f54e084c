"""Messages with `role` and `content`, checked, and kept with all that they hold."""

from __future__ import annotations

from contextlib import suppress

from lrft.data.example import Message
from lrft.registry.errors import DataError
from lrft.registry.json import Json, parse_text, to_section

ROLES = ("system", "developer", "user", "assistant", "tool")
# Other names of the speakers, in small letters.
SPEAKERS = {
    "human": "user",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "model": "assistant",
    "bot": "assistant",
    "ai": "assistant",
    "observation": "tool",
    "function": "tool",
    "function_response": "tool",
}
# Other names for the weight of a message, where the value says yes or no; and names whose values may say anything.
TRAINS = ("train", "training", "loss")
WEIGHTS = ("mask", "train_on_turn", "train_detail")
# What an answer may say beside, or instead of, its content.
SAID = (
    "tool_calls",
    "function_call",
    "reasoning_content",
    "reasoning",
    "thinking",
    "refusal",
    "audio",
    "tool_plan",
)


def are_turns(value: Json, speaker: str, words: str) -> bool:
    """Whether a column holds a list of turns that each have a speaker and mostly words, under these keys."""
    value = listed(value)
    turns = value if isinstance(value, list) else []
    return any(isinstance(turn, dict) and words in turn for turn in turns) and all(
        isinstance(turn, dict) and speaker in turn for turn in turns
    )


def listed(value: Json) -> Json:
    """What a column holds, a list that it has as JSON text read."""
    if isinstance(value, str) and value.lstrip().startswith("["):
        with suppress(ValueError):
            return parse_text(value)
    return value


def no_list(value: Json) -> str:
    """Of text in the place of a list, what it is not."""
    return ", and holds a text that is no JSON list" if isinstance(value, str) else ""


def turns_of(messages: Json, column: str, ignore: list[str]) -> list[Message]:
    """The turns of a conversation, with every field that is not null and not ignored.

    Raises:
        DataError: not a list, or the first message that is none.
    """
    messages = listed(messages)
    if not isinstance(messages, list) or not messages:
        raise DataError(
            f"column {column!r} must be a list of messages with role and content{no_list(messages)}"
        )
    return [_turn(message, number, ignore) for number, message in enumerate(messages, 1)]


def checked(message: Message, number: int) -> Message:
    """A turn with a role and a text, its other fields checked: weight, calls, and that an answer says something.

    Raises:
        DataError: what is wrong with the message, by number.
    """
    role, place = message["role"], f"message {number} ({message['role']})"
    message = _weighted(message, place)
    _check_weight(message, place)
    turn = {**message, "content": _content(message, place)}
    if "tool_calls" in turn:
        turn["tool_calls"] = _calls(turn["tool_calls"], place)
        if not turn["tool_calls"]:  # none: to some templates an empty list is not the same
            del turn["tool_calls"]
    text = turn["content"].strip() if isinstance(turn["content"], str) else turn["content"]
    silent = not text and not any(turn.get(name) for name in SAID)
    if role == "assistant" and silent and turn.get("weight") != 0:
        raise DataError(
            f"{place} has neither text nor a call, so the model would learn to say nothing; remove it, or "
            "write weight: 0 into it"
        )
    return turn


def tools_of(held: Json, column: str) -> tuple[Message, ...]:
    """The tools that a row lists, as a list or as JSON text of one, each in the form `{type, function}`.

    Raises:
        DataError: no list of objects.
    """
    tools, why = held, ""
    if isinstance(held, str):
        try:
            tools = parse_text(held) if held.strip() else []
        except ValueError as error:
            tools, why = None, f" ({error})"
    if not isinstance(tools, list) or not all(isinstance(tool, dict) for tool in tools):
        raise DataError(
            f"column {column!r} must be a list of tools, each an object, or such a list as JSON text{why}"
        )
    bare = [set(tool) >= {"name"} and "function" not in tool for tool in tools]
    return tuple(
        {"type": "function", "function": t} if alone else t for t, alone in zip(tools, bare, strict=True)
    )


def _turn(message: Json, number: int, ignore: list[str]) -> Message:
    if not isinstance(message, dict) or "role" not in message:
        raise _no_message(message, number)
    held = {key: value for key, value in message.items() if value is not None and key not in ignore}
    held["role"] = _role(message["role"], number)
    if "content" not in message and not (held["role"] == "assistant" and any(held.get(k) for k in SAID)):
        raise _no_message(message, number)
    return checked(held, number)


def _role(said: Json, number: int) -> str:
    """The role that a speaker's name means."""
    name = said.lower() if isinstance(said, str) else ""
    if (role := SPEAKERS.get(name, name)) not in ROLES:
        others = ", ".join(SPEAKERS)
        raise DataError(
            f"message {number} has role {said!r}; roles are {', '.join(ROLES)}, or {others}; rename it to one of them"
        )
    return role


def _no_message(message: Json, number: int) -> DataError:
    keys = list(message) if isinstance(message, dict) else []
    hint = "; `from` and `value` are read by data.format: sharegpt" if "from" in keys else ""
    held = f"it has {keys}" if keys else f"it is a {type(message).__name__}"
    return DataError(f"message {number} needs role and content, {held}{hint}")


def _content(message: Message, place: str) -> Json:
    """The text of a message: its only part's where it has parts, the parts where they are several."""
    content = message.get("content")
    speaks = any(message.get(name) for name in SAID) or message.get("weight") == 0
    if content is None and message["role"] == "assistant" and speaks:
        return ""
    if isinstance(content, list):
        parts = [_part(part, number, place) for number, part in enumerate(content, 1)]
        return parts if len(parts) > 1 else "".join(str(part["text"]) for part in parts)
    if not isinstance(content, str):
        raise DataError(f"{place} has content of type {type(content).__name__}; only text can be learnt")
    return content


def _part(part: Json, number: int, place: str) -> Message:
    held = to_section(part)
    kind = held.get("type")
    if isinstance(kind, str) and kind != "text":
        raise DataError(f"{place}: part {number} of its content is of type {kind!r}; only text can be learnt")
    if kind is None or not isinstance(held.get("text"), str):
        raise DataError(
            f"{place} has content of type list, whose part {number} is not as in "
            '{"type": "text", "text": "..."}; write the content as text, or as such parts'
        )
    return {key: value for key, value in held.items() if value is not None}


def _weighted(message: Message, place: str) -> Message:
    """The message with its weight under the one name."""
    said = {name: message[name] for name in TRAINS if name in message}
    for name, value in said.items():
        if not isinstance(value, bool) and not (isinstance(value, int) and value in (0, 1)):
            raise DataError(
                f"{place} has {name} {value!r}; it may be false (read only) or true (learnt), or write "
                f"data.format.ignore: [{name}] to learn the message all the same"
            )
    if not said:
        return message
    weights = {int(bool(value)) for value in said.values()}
    if len(weights) > 1 or message.get("weight", *weights) not in weights:
        names = ", ".join((*said, *(["weight"] if "weight" in message else [])))
        raise DataError(f"{place} is to be learnt by one of {names} and not by another; leave one of them")
    kept = {key: value for key, value in message.items() if key not in TRAINS}
    return {**kept, "weight": weights.pop()}


def _check_weight(message: Message, place: str) -> None:
    for name in WEIGHTS:
        if name in message:
            raise DataError(
                f"{place} has the field {name!r}; whether an answer is learnt is read from `weight`, 0 or 1: rename "
                f"it, or write data.format.ignore: [{name}] to learn the message all the same"
            )
    weight = message.get("weight")
    if weight is None or (not isinstance(weight, bool) and weight == 0):
        return
    if message["role"] != "assistant":
        raise DataError(
            f"{place} has weight {weight!r}; only an assistant's message can be learnt, so 0 or none"
        )
    if isinstance(weight, bool) or weight != 1:
        raise DataError(f"{place} has weight {weight!r}; it may be 0 (read only) or 1 (learnt)")


def _calls(calls: Json, place: str) -> list[Message]:
    """The calls, arguments that are JSON text of an object read."""
    held = calls if isinstance(calls, list) else [calls]
    for number, call in enumerate(held, 1):
        if calls is call or not isinstance(call, dict) or not isinstance(call.get("function", call), dict):
            raise DataError(
                f"{place}: tool_calls must be a list of objects such as "
                '{"type": "function", "function": {"name": "...", "arguments": {...}}}, '
                f"number {number} is {call!r:.80}"
            )
    return [_read_call(call) for call in held if isinstance(call, dict)]


def _read_call(call: Message) -> Message:
    inner = call.get("function")
    held = inner if isinstance(inner, dict) else call
    function: Message = {key: value for key, value in held.items() if value is not None}
    if isinstance(written := function.get("arguments"), str):
        with suppress(ValueError):  # a template may write any other text as it is
            arguments = parse_text(written)
            function["arguments"] = arguments if isinstance(arguments, dict) else written
    more = {key: value for key, value in call.items() if value is not None}
    return function if held is call else {**more, "function": function}
