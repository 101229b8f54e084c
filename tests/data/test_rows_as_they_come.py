"""Rows as other tools write them: other names of speakers, lists as JSON text, prompts and answers as messages."""

from __future__ import annotations

import json

import pytest

from lrft.build.guess import guess
from lrft.data.prompts import Asker
from lrft.data.rows import Rows
from lrft.registry.axes import FORMATS
from lrft.registry.config import parse_choice
from lrft.registry.errors import DataError

ASKED, SAID = {"role": "user", "content": "how ?"}, {"role": "assistant", "content": "so"}
CHATML = (
    "{% for m in messages %}{{ m.role }}: {{ m.content }}</s>{% endfor %}"
    "{% if add_generation_prompt %}assistant: {% endif %}"
)
TOOL = {"type": "function", "function": {"name": "f", "parameters": {}}}


def form(method, **settings):
    config = parse_choice(FORMATS, {"method": method, **settings})
    return FORMATS.get(method)(config)


def guessed(*rows):
    config, _ = guess(Rows(list(rows), "rows.jsonl", "", lines=range(1, len(rows) + 1)))
    return config


@pytest.mark.parametrize(
    ("asks", "answers"),
    [("human", "gpt"), ("User", "Assistant"), ("human", "ai"), ("user", "model"), ("USER", "bot")],
)
def test_speakers_of_a_chat_have_their_usual_names(asks, answers):
    turns = [{"role": asks, "content": "how ?"}, {"role": answers, "content": "so"}]
    assert form("chat").example({"messages": turns}).messages == (ASKED, SAID)


def test_a_role_that_nobody_knows_is_refused_with_those_that_are_known():
    turns = [{"role": "narrator", "content": "how ?"}, SAID]
    with pytest.raises(
        DataError, match=r"message 1 has role 'narrator'; .*user, assistant.*human.*rename it"
    ):
        form("chat").example({"messages": turns})


def test_the_result_of_a_function_is_that_of_a_tool():
    call = {"role": "assistant", "content": None, "function_call": {"name": "f", "arguments": "{}"}}
    turns = [ASKED, call, {"role": "function", "name": "f", "content": "1"}, SAID]
    roles = [turn["role"] for turn in form("chat").example({"messages": turns}).messages]
    assert roles == ["user", "assistant", "tool", "assistant"]


@pytest.mark.parametrize(
    ("method", "column", "turns"),
    [
        ("chat", "messages", [ASKED, SAID]),
        ("chat", "conversations", [ASKED, SAID]),
        ("sharegpt", "conversations", [{"from": "human", "value": "how ?"}, {"from": "gpt", "value": "so"}]),
        ("sharegpt", "messages", [{"from": "human", "value": "how ?"}, {"from": "gpt", "value": "so"}]),
    ],
)
@pytest.mark.parametrize("written", [False, True])
def test_a_list_of_turns_is_found_in_its_column_and_may_be_json_text(method, column, turns, written):
    row = {column: json.dumps(turns) if written else turns, "id": 1}
    config = guessed(row, row)
    assert config.method == method and config.column == column
    assert FORMATS.get(method)(config).example(row).messages == (ASKED, SAID)


def test_text_that_is_no_list_is_refused_by_what_it_is():
    for text in ("[{'role': 'user'}]", "how ?"):
        with pytest.raises(DataError, match=r"column 'messages' must be a list of messages .*no JSON list"):
            form("chat").example({"messages": text})


@pytest.mark.parametrize("render", ["plain", "chat"])
def test_a_prompt_and_its_completion_may_be_messages_of_which_the_prompts_are_read_only(render):
    system, more = {"role": "system", "content": "be kind"}, {"role": "user", "content": "and now ?"}
    row = {"prompt": [system, ASKED, SAID, more], "completion": [{**SAID, "content": "no"}], "tools": [TOOL]}
    example = form("prompt_completion", render=render).example(row)
    assert [turn["content"] for turn in example.messages] == ["be kind", "how ?", "so", "and now ?", "no"]
    assert list(example.learnt) == [4] and example.tools == (TOOL,)
    assert guessed(row).method == "prompt_completion"


def test_either_of_them_may_be_text():
    texts = form("prompt_completion")
    assert texts.example({"prompt": "how ?", "completion": [SAID]}).messages == (ASKED, SAID)
    assert texts.example({"prompt": [ASKED], "completion": "so"}).messages == (ASKED, SAID)
    assert texts.asked({"prompt": [ASKED]}).messages == (ASKED,)
    with pytest.raises(DataError, match=r"column 'completion' ends in a message of role user"):
        texts.example({"prompt": [ASKED], "completion": [SAID, ASKED]})


def test_tools_beside_plain_text_are_refused():
    row = {"prompt": "how ?", "completion": "so", "tools": [TOOL]}
    with pytest.raises(DataError, match=r"written by a chat template only"):
        form("prompt_completion").example(row)
    assert form("prompt_completion", render="chat").example(row).tools == (TOOL,)


def test_a_judged_answer_is_still_taken_for_one():
    assert guessed({"prompt": [ASKED], "completion": [SAID], "label": True}).method == "unpaired"


def test_rows_that_a_format_has_the_columns_for_are_refused_with_its_reason():
    good = {"messages": [ASKED, SAID]}
    for bad, why in (
        ({"messages": []}, "must be a list of messages"),
        ({"messages": "how ?"}, "no JSON list"),
        ({"messages": [{"human": "how ?"}]}, "needs role and content"),
    ):
        with pytest.raises(DataError, match=rf"rows\.jsonl:2: .*{why}"):
            guessed(good, bad)


@pytest.mark.parametrize("method", ["prompt_completion", "preference", "unpaired"])
def test_a_prompt_of_messages_is_asked_without_an_answer(method):
    assert form(method).asked({"prompt": [ASKED]}).messages == (ASKED,)
    assert form(method).asked({"prompt": [ASKED, SAID, ASKED]}).messages == (ASKED, SAID, ASKED)
    assert form(method).asked({"prompt": "how ?"}).prompt == "how ?"


@pytest.mark.parametrize(
    ("method", "row"),
    [
        ("preference", {"chosen": [ASKED, SAID], "rejected": [ASKED, {**SAID, "content": "no"}]}),
        ("unpaired", {"completion": [ASKED, SAID], "label": True}),
        ("preference", {"prompt": "how ?", "chosen": [SAID], "rejected": [{**SAID, "content": "no"}]}),
        ("preference", {"prompt": "how ?", "chosen": [ASKED, SAID], "rejected": [ASKED, SAID]}),
        ("unpaired", {"prompt": "how ?", "completion": [SAID], "label": True}),
        ("prompt_completion", {"prompt": [ASKED], "completion": [SAID]}),
        ("prompt_completion", {"prompt": "how ?", "completion": [SAID]}),
        ("prompt_completion", {"prompt": [ASKED], "completion": "so"}),
    ],
)
def test_rows_with_their_answers_are_asked_as_they_are(method, row, byte_tokenizer, renderer):
    asker = Asker(renderer(byte_tokenizer(CHATML), method))
    assert asker.row(row).messages == (ASKED,)
    if method != "unpaired":
        assert asker.ids(asker.row(row)) == asker.renderer.prompt_ids(row)


IN_MESSAGES = [
    ("preference", {"chosen": [ASKED, SAID], "rejected": [ASKED, SAID]}),
    ("preference", {"prompt": "how ?", "chosen": [SAID], "rejected": [SAID]}),
    ("unpaired", {"prompt": [ASKED], "completion": [SAID], "label": True}),
    ("prompt_completion", {"prompt": [ASKED], "completion": [SAID]}),
]


@pytest.mark.parametrize(("method", "sample"), IN_MESSAGES)
def test_a_text_is_asked_in_messages_where_the_rows_that_were_learnt_are(
    method, sample, byte_tokenizer, renderer
):
    rendering = renderer(byte_tokenizer(CHATML), {"method": method, "system": "be kind"})
    asker = Asker(rendering, sample)
    expected = ({"role": "system", "content": "be kind"}, ASKED)
    assert asker.text("how ?").messages == asker.row({"prompt": "how ?"}).messages == expected
    assert asker.ids(asker.text("how ?")) == rendering.prompt_ids(sample)
    texts = {"prompt": "how ?", "completion": "so", "chosen": "so", "rejected": "no", "label": True}
    plain = Asker(rendering, {name: texts[name] for name in {*rendering.format.columns, "prompt"}})
    assert plain.text("how ?").messages == () and plain.text("how ?").prompt == "be kind\n\nhow ?"
