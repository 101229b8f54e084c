"""The format of rows by their columns."""

from __future__ import annotations

import pytest

from lrft.build.guess import guess
from lrft.data.rows import Rows
from lrft.registry.errors import DataError

TURNS = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
SAID = [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}]

GUESSED = {
    "chat": ({"messages": TURNS, "id": 3}, {"method": "chat"}, ("messages",)),
    "calls": (
        {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "tool_calls": []}]},
        {"method": "chat"},
        ("messages",),
    ),
    "conversations": (
        {"conversations": TURNS},
        {"method": "chat", "column": "conversations"},
        ("conversations",),
    ),
    "sharegpt": ({"conversations": SAID}, {"method": "sharegpt"}, ("conversations",)),
    "alpaca": (
        {"instruction": "a", "input": "", "output": "b"},
        {"method": "instruction"},
        ("instruction", "output"),
    ),
    "dolly": (
        {"instruction": "a", "context": "", "response": "b", "category": "c"},
        {"method": "instruction", "input": "context", "output": "response"},
        ("instruction", "response"),
    ),
    "completion": (
        {"prompt": "a", "completion": "b"},
        {"method": "prompt_completion"},
        ("prompt", "completion"),
    ),
    "response": (
        {"prompt": "a", "response": "b"},
        {"method": "prompt_completion", "completion": "response"},
        ("prompt", "response"),
    ),
    "pairs": (
        {"prompt": "a", "chosen": "b", "rejected": "c"},
        {"method": "preference"},
        ("chosen", "rejected"),
    ),
    "text": ({"text": "a", "url": "b"}, {"method": "text"}, ("text",)),
}
# columns -> parts of the message
REFUSED = {
    "question": (
        {"question": "a", "answer": "b"},
        ["question and answer", '"{question}", completion: " {answer}"'],
    ),
    "quotes": ({'The "Q"': "a", "A": "b"}, ['prompt: "{The \\"Q\\"}", completion: " {A}"']),
    "label": ({"text": "a", "label": 1}, ["the columns text and label", "fit no format"]),
    "alpaca_text": ({"instruction": "a", "output": "b", "messages": TURNS}, ["fit chat and instruction"]),
    "two answers": ({"prompt": "a", "response": "b", "answer": "c"}, ["fit no format"]),
}


def rows(*given):
    return Rows(list(given), "r.jsonl", "", range(1, len(given) + 1))


@pytest.mark.parametrize("name", GUESSED)
def test_known_columns_are_a_format(name):
    row, settings, columns = GUESSED[name]
    config, found = guess(rows(row, row))
    assert config.model_dump(exclude_unset=True) == settings and found == columns


@pytest.mark.parametrize("name", REFUSED)
def test_other_columns_are_refused_by_name_with_what_would_work(name):
    row, parts = REFUSED[name]
    with pytest.raises(DataError) as raised:
        guess(rows(row))
    message = str(raised.value)
    assert message.startswith("data.format: the columns ") and "(r.jsonl:1)" in message
    assert all(part in message for part in parts), message


def test_rows_of_two_kinds_are_refused():
    with pytest.raises(DataError, match=r"the columns messages, prompt and completion .* fit no format"):
        guess(rows({"messages": TURNS}, GUESSED["completion"][0]))
