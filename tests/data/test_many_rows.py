"""Rows tokenized many at a time: in one call a batch, to the same tokens, each message in its row's turn."""

from __future__ import annotations

from dataclasses import asdict

import pytest

from lrft.data import encode
from lrft.data.drafts import ALONE, Ready
from lrft.data.encode import encode_all, encode_each
from lrft.data.rows import Rows
from lrft.registry.errors import DataError

TEXTS = [
    {"prompt": f"what is {k} ?", "completion": f" it is {k * k}" if k % 3 else " the"} for k in range(23)
]
CHATS = [
    {
        "messages": [
            {"role": "user", "content": f"say {k}"},
            {"role": "assistant", "content": f"{k}\n\n done"},
        ]
        * 2
    }
    for k in range(9)
]
PAIRS = [{"prompt": "a b", "chosen": f" c {k}", "rejected": " d"} for k in range(5)]
TEMPLATE = (
    "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% if m.role == 'assistant' %}</s>{% endif %}\n{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)


def rows_of(rows):
    return Rows(rows, "rows.jsonl", "none", list(range(1, len(rows) + 1)))


class Counting:
    """A tokenizer that counts its calls and the texts it is given."""

    def __init__(self, tokenizer):
        self.tokenizer, self.calls, self.texts = tokenizer, 0, 0

    def __call__(self, text, **asked):
        self.calls += 1
        self.texts += len(text) if isinstance(text, list) else 1
        return self.tokenizer(text, **asked)

    def __len__(self):
        return len(self.tokenizer)

    def __getattr__(self, name):
        return getattr(self.tokenizer, name)


@pytest.mark.parametrize(
    ("rows", "format"),
    [(TEXTS, "prompt_completion"), (CHATS, "chat"), (PAIRS, "preference"), ([{"text": "a b"}] * 3, "text")],
)
@pytest.mark.parametrize("kind", ["word_tokenizer", "byte_tokenizer"])
def test_the_tokens_are_those_of_every_row_alone(request, renderer, monkeypatch, rows, format, kind):
    tokenizer = request.getfixturevalue(kind)()
    tokenizer.chat_template = TEMPLATE
    monkeypatch.setattr(encode, "BATCH", 4)
    alone = [renderer(tokenizer, format).encode(row) for row in rows]
    together = encode_all(rows_of(rows), renderer(tokenizer, format))
    assert [asdict(row) for row in together] == [asdict(row) for row in alone]


def test_a_batch_is_one_call(renderer, byte_tokenizer, monkeypatch):
    monkeypatch.setattr(encode, "BATCH", 8)
    counting = Counting(byte_tokenizer())
    made = renderer(counting, "prompt_completion")
    counting.calls = 0
    found = encode_all(rows_of([{"prompt": f"{k}:", "completion": f"\n{k}"} for k in range(20)]), made)
    assert counting.calls == 3 and not any(row.apart for row in found)


@pytest.mark.parametrize("bad", [3, 4, 9])
def test_the_first_row_that_cannot_be_used_is_told_whatever_is_wrong_with_later_ones(
    renderer, word_tokenizer, monkeypatch, bad
):
    monkeypatch.setattr(encode, "BATCH", 4)
    rows = [*TEXTS[:bad], {"prompt": "no answer"}, {"prompt": None, "completion": "x"}]
    heard = []
    with pytest.raises(DataError, match=rf"rows\.jsonl:{bad + 1}: .*completion"):
        encode_each(
            rows_of(rows), renderer(word_tokenizer(), "prompt_completion"), lambda done, _: heard.append(done)
        )
    assert heard == list(range(1, bad + 1))


def test_what_is_not_ready_or_asked_for_otherwise_is_asked_of_the_tokenizer(byte_tokenizer):
    tokenizer = byte_tokenizer()
    ready = Ready(tokenizer)
    ready.prepare([])
    assert ready("a b", **ALONE)["input_ids"] == tokenizer("a b", **ALONE)["input_ids"]
    assert "offset_mapping" in ready(
        "a b", add_special_tokens=False, return_offsets_mapping=True, verbose=False
    )
    assert ready.decode(tokenizer("a")["input_ids"]) == "a"
