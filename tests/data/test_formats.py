from __future__ import annotations

import pytest
from pydantic import ValidationError

from lrft.core.axes import FORMATS
from lrft.core.config import parse_choice
from lrft.core.errors import DataError
from lrft.data.example import Example


def example(format, row):
    config = parse_choice(FORMATS, format)
    return FORMATS.get(config.method)(config).example(row)


def turns(*pairs):
    return tuple({"role": role, "content": content} for role, content in pairs)


SAID = [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Hello."}]


@pytest.mark.parametrize("name", FORMATS.names())
def test_every_format_is_described_and_registered_under_its_file_name(name):
    cls = FORMATS.get(name)
    assert cls.name == name and FORMATS.declared(name).summary
    assert FORMATS.declared(name).config.model_fields.keys() == cls.Config.model_fields.keys()


def test_chat_keeps_the_turns_and_adds_a_system_message_only_where_none_is():
    said = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello.", "id": 3}]
    assert example("chat", {"messages": said}).messages == (said[0], said[1])
    kind = {"method": "chat", "column": "talk", "system": "Be kind.", "learn": "last"}
    made = example(kind, {"talk": said})
    assert made.messages[0] == {"role": "system", "content": "Be kind."} and made.learn == "last"
    own = [{"role": "system", "content": "Own."}, *said]
    assert example(kind, {"talk": own}).messages[0]["content"] == "Own."


def test_sharegpt_maps_speakers_to_roles():
    assert example("sharegpt", {"conversations": SAID}).messages == turns(
        ("user", "Hi"), ("assistant", "Hello.")
    )
    mapped = {"method": "sharegpt", "roles": {"bard": "assistant"}}
    assert (
        example(mapped, {"conversations": [{"from": "bard", "value": "x"}]}).messages[0]["role"]
        == "assistant"
    )


def test_instruction_is_the_alpaca_prompt():
    made = example("instruction", {"instruction": "Add.", "input": "1 2", "output": "3"})
    assert made.completion == "3"
    assert made.prompt == (
        "Below is an instruction that describes a task, paired with an input that provides further context. "
        "Write a response that appropriately completes the request.\n\n"
        "### Instruction:\nAdd.\n\n### Input:\n1 2\n\n### Response:\n"
    )
    without = example("instruction", {"instruction": "Hi.", "output": "Ho."})
    assert without == example("instruction", {"instruction": "Hi.", "input": "", "output": "Ho."})
    assert "### Input" not in without.prompt and "further context" not in without.prompt


def test_instruction_through_the_chat_template():
    kind = {"method": "instruction", "render": "chat", "system": "S", "output": "answer"}
    made = example(kind, {"instruction": "Add.", "input": "1 2", "answer": 3})
    assert made.messages == turns(("system", "S"), ("user", "Add.\n\n1 2"), ("assistant", "3"))


def test_prompt_and_completion_are_joined_as_they_are():
    assert example("prompt_completion", {"prompt": "2+2=", "completion": "4"}) == Example(
        prompt="2+2=", completion="4"
    )
    plain = {"method": "prompt_completion", "system": "Count."}
    assert example(plain, {"prompt": "2+2=", "completion": "4"}).prompt == "Count.\n\n2+2="


def test_columns_fill_templates_and_keep_doubled_braces():
    kind = {"method": "columns", "prompt": "Q: {question} {{x}}\nA:", "completion": " {final answer}"}
    made = example(kind, {"question": "{why}?", "final answer": 7, "more": None})
    assert made == Example(prompt="Q: {why}? {x}\nA:", completion=" 7")


def test_text_is_all_completion():
    assert example("text", {"text": "Once"}) == Example(completion="Once")


PROMPTS = ["{a", "{a.__class__}", "{a[0]}", "{}", "{0}", "{a!r}", "{a:>9}"]


@pytest.mark.parametrize(
    ("prompt", "completion"), [*((prompt, "{b}") for prompt in PROMPTS), ("{a}", "fixed")]
)
def test_templates_that_are_not_plain_columns_are_refused_with_the_recipe(prompt, completion):
    with pytest.raises(ValidationError):
        parse_choice(FORMATS, {"method": "columns", "prompt": prompt, "completion": completion})


REFUSED = {
    "missing": (
        "prompt_completion",
        {"prompt": "a", "text": "b"},
        "needs column 'completion', the row has prompt, text",
    ),
    "other_format": (
        "instruction",
        {"prompt": "a", "completion": "b"},
        "data.format: prompt_completion would fit",
    ),
    "several_fit": (
        "text",
        {"messages": [], "prompt": "", "completion": ""},
        "chat or prompt_completion would fit",
    ),
    "none_fits": ("chat", {"question": "a", "answer": "b"}, "columns takes any column by template"),
    "null": ("text", {"text": None}, "column 'text' is null"),
    "list": ("prompt_completion", {"prompt": [1], "completion": "b"}, "holds a list"),
    "null_output": ("instruction", {"instruction": "a", "output": None}, "column 'output' is null"),
    "no_list": ("chat", {"messages": "hi"}, "must be a list of messages"),
    "empty_list": ("chat", {"messages": []}, "must be a list of messages"),
    "sharegpt_keys": ("chat", {"messages": SAID}, "data.format: sharegpt"),
    "chat_keys": ("sharegpt", {"conversations": [{"role": "user", "content": "x"}]}, "data.format: chat"),
    "role": ("chat", {"messages": [{"role": "gpt", "content": "x"}]}, "role 'gpt'"),
    "speaker": ("sharegpt", {"conversations": [{"from": "bard", "value": "x"}]}, "data.format.roles"),
    "no_text": ("chat", {"messages": [{"role": "user", "content": None}]}, "content of type NoneType"),
    "parts": ("chat", {"messages": [{"role": "user", "content": [{"text": "x"}]}]}, "content of type list"),
    "string_turn": ("chat", {"messages": ["hi"]}, "message 1 needs role and content, it is a str"),
    "number_turn": ("sharegpt", {"conversations": [7]}, "turn 1 needs"),
    "list_speaker": ("sharegpt", {"conversations": [{"from": ["gpt"], "value": "x"}]}, "data.format.roles"),
    "number_value": ("sharegpt", {"conversations": [{"from": "gpt", "value": 7}]}, "type int"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_row_that_does_not_fit_says_what_would(case):
    format, row, part = REFUSED[case]
    with pytest.raises(DataError) as raised:
        example(format, row)
    assert part in str(raised.value) and "\n" not in str(raised.value)
