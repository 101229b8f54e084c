"""Prompts without answers: the tokens that training put before the answers of the same questions."""

from __future__ import annotations

import json

import pytest

from lrft.data.prompts import Asker, read_prompts
from lrft.data.tokenize import Renderer
from lrft.model.tokenizer import load_tokenizer
from lrft.recipe.sections import ModelSection
from lrft.registry.axes import FORMATS
from lrft.registry.config import parse_choice
from lrft.registry.errors import DataError

SAID = [{"role": "user", "content": "2 + 2 ="}, {"role": "assistant", "content": "4"}]
LONG = [*SAID, {"role": "user", "content": "and 3?"}, {"role": "assistant", "content": "7"}]
THINKING = (
    "{% for m in messages %}<|im_start|>{{ m.role }}{{ '\n' }}"
    "{% if m.role == 'assistant' %}<think>\n\n</think>\n\n{% endif %}"
    "{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
# A row with its answer, and the format that reads it.
ROWS = {
    "plain": ({"prompt": "2 + 2 =", "completion": " 4"}, "prompt_completion"),
    "chat-rendered": (
        {"prompt": "2 + 2 =", "completion": "4", "system": "Add."},
        {"method": "prompt_completion", "render": "chat"},
    ),
    "chat": ({"messages": LONG}, "chat"),
    "sharegpt": (
        {"conversations": [{"from": "human", "value": "2 + 2 ="}, {"from": "gpt", "value": "4"}]},
        {"method": "sharegpt", "system": "Add."},
    ),
    "alpaca": ({"instruction": "Add.", "input": "2 + 2", "output": "4"}, "instruction"),
    "alpaca-chat": (
        {"instruction": "Add.", "input": "2 + 2", "output": "4", "history": [["1 + 1", "2"]]},
        {"method": "instruction", "render": "chat"},
    ),
    "columns": (
        {"q": "2 + 2", "a": "4"},
        {"method": "columns", "prompt": "Q: {q}\nA:", "completion": " {a}"},
    ),
    "preference": ({"prompt": "2 + 2 =", "chosen": " 4", "rejected": " 5"}, "preference"),
}


@pytest.fixture(scope="module")
def renderer(tiny):
    section = ModelSection(name=str(tiny()))

    def make(format="chat", template=None) -> Renderer:
        tokenizer, stops = load_tokenizer(section)
        tokenizer.chat_template = template or tokenizer.chat_template
        config = parse_choice(FORMATS, format)
        return Renderer(tokenizer, FORMATS.get(config.method)(config), stops, max_length=512)

    return make


@pytest.mark.parametrize("template", [None, THINKING], ids=["own", "thinking"])
@pytest.mark.parametrize("kind", ROWS)
def test_a_row_without_its_answer_is_asked_with_the_tokens_of_the_row_with_it(renderer, kind, template):
    row, format = ROWS[kind]
    made = renderer(format, template)
    asker = Asker(made, row)
    wanted = made.question(row).prompt
    assert wanted and asker.ids(asker.row(row)) == wanted
    bare = {name: value for name, value in row.items() if name not in made.format.answers}
    assert asker.ids(asker.row(bare)) == wanted
    assert asker.at_once == ("<think>" in made.tokenizer.decode(wanted))


@pytest.mark.parametrize("kind", ["plain", "chat", "sharegpt", "columns", "preference"])
def test_a_text_is_asked_as_the_format_asks(renderer, kind):
    row, format = ROWS[kind]
    asker = Asker(renderer(format), None)
    text = {"columns": "2 + 2"}.get(kind, "2 + 2 =")
    row = {**row, "messages": SAID} if kind == "chat" else row
    assert asker.ids(asker.text(text)) == asker.ids(asker.row(row))


def test_raw_text_goes_on_from_the_text(renderer):
    made = renderer("text")
    asker = Asker(made, None)
    assert asker.ids(asker.text("Once upon")) == made.encode({"text": "Once upon"}).input_ids[:-1]


def test_messages_are_rendered_whatever_the_format_of_the_run(renderer):
    chat, plain = Asker(renderer("chat"), None), Asker(renderer("prompt_completion"), None)
    for turns in (SAID[:1], LONG[:3], LONG):
        assert plain.ids(plain.row({"messages": turns})) == chat.ids(chat.row({"messages": turns}))
    assert plain.ids(plain.row({"messages": LONG[:3]})) == plain.ids(plain.row({"messages": LONG}))
    assert "and 3?" in plain.renderer.tokenizer.decode(plain.ids(plain.row({"messages": LONG})))


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (
            {"question": "q"},
            r"the row has question; a prompt has `messages`, a list, or `prompt`, a text, or what .* q",
        ),
        ({"messages": []}, "must be a list of messages"),
        ({"messages": SAID[1:]}, "no message before its answer"),
        ({"prompt": "x"}, "made of q, extra"),
    ],
)
def test_a_row_that_asks_nothing_is_refused(renderer, row, message):
    format = {"method": "columns", "prompt": "{q} {extra}", "completion": "{a}"}
    with pytest.raises(DataError, match=message):
        Asker(renderer(format), None).row(row)


def test_lines_and_rows_are_read_in_order(renderer, tmp_path):
    asker = Asker(renderer("prompt_completion"), None)
    (tmp_path / "p.txt").write_text("one\ntwo \n")
    rows, found = read_prompts(tmp_path / "p.txt", asker)
    assert [example.prompt for example in found] == ["one", "two "]
    assert rows.where(1) == f"{tmp_path / 'p.txt'}:2"
    lines = [{"prompt": "one", "id": 7}, {"messages": SAID[:1]}]
    (tmp_path / "p.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    _, found = read_prompts(tmp_path / "p.jsonl", asker)
    assert found[0].prompt == "one" and found[1].messages[0]["content"] == "2 + 2 ="


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("p.txt", "one\n\nthree\n", "p.txt:2: the line is empty"),
        ("p.txt", "", "p.txt:1: the file has no prompts"),
        ("p.jsonl", '{"prompt": "a"}\n{"question": "b"}\n', "p.jsonl:2: the row has question"),
        ("p.md", "one\n", "p.md: prompts are read from files that end in .json"),
        ("missing.txt", None, "missing.txt: no such file"),
    ],
)
def test_a_file_that_cannot_be_asked_is_refused_by_line(renderer, tmp_path, name, text, message):
    if text is not None:
        (tmp_path / name).write_text(text)
    with pytest.raises(DataError, match=message):
        read_prompts(tmp_path / name, Asker(renderer("prompt_completion"), None))
