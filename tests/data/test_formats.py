from __future__ import annotations

import pytest
from pydantic import ValidationError

from lrft.data.encoded import Notes
from lrft.data.example import Example
from lrft.registry.axes import FORMATS
from lrft.registry.config import parse_choice
from lrft.registry.errors import DataError


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


CALL = {"type": "function", "function": {"name": "weather", "arguments": {"city": "Wien"}}}
TOOL = {"name": "weather", "parameters": {}}


def test_messages_keep_every_field_that_is_not_null_and_not_ignored():
    said = [
        {"role": "user", "content": "Hi", "name": "Ann", "audio": None},
        {"role": "assistant", "content": "Ho"},
    ]
    assert example("chat", {"messages": said}).messages[0] == {"role": "user", "content": "Hi", "name": "Ann"}
    kind = {"method": "chat", "ignore": ["name", "tools"]}
    made = example(kind, {"messages": said, "tools": [TOOL]})
    assert made.messages == turns(("user", "Hi"), ("assistant", "Ho")) and made.tools == ()


@pytest.mark.parametrize("content", [{}, {"content": None}, {"content": ""}, {"content": []}])
@pytest.mark.parametrize("arguments", ['{"city": "Wien"}', {"city": "Wien"}])
def test_a_call_needs_no_content_and_its_arguments_may_be_json_text(content, arguments):
    call = {"type": "function", "function": {"name": "weather", "arguments": arguments}}
    row = {
        "messages": [{"role": "user", "content": "?"}, {"role": "assistant", "tool_calls": [call], **content}]
    }
    assert example("chat", row).messages[1] == {"role": "assistant", "content": "", "tool_calls": [CALL]}


@pytest.mark.parametrize("tools", [[TOOL], '[{"name": "weather", "parameters": {}}]'])
def test_tools_are_read_in_every_format_of_conversations(tools):
    rows = {
        "chat": {"messages": turns(("user", "?"), ("assistant", "!"))},
        "sharegpt": {"conversations": SAID},
        "preference": {
            "prompt": [*turns(("user", "?"))],
            "chosen": [*turns(("assistant", "a"))],
            "rejected": [*turns(("assistant", "b"))],
        },
    }
    for name, row in rows.items():
        row = {key: list(value) for key, value in row.items()}
        made = example(name, {**row, "tools": tools})
        assert made.tools == ({"type": "function", "function": TOOL},)
        assert made.rejected is None or made.rejected.tools == made.tools


def test_sharegpt_reads_calls_results_and_weights():
    said = [
        {"from": "human", "value": "How is it?"},
        {"from": "function_call", "value": '{"name": "weather", "arguments": {"city": "Wien"}}'},
        {"from": "observation", "value": "sunny"},
        {"from": "gpt", "value": "Sunny.", "weight": 0},
    ]
    made = example("sharegpt", {"conversations": said, "system": "S"})
    assert [turn["role"] for turn in made.messages] == ["system", "user", "assistant", "tool", "assistant"]
    assert made.messages[2] == {"role": "assistant", "content": "", "tool_calls": [CALL]}
    assert made.messages[4]["weight"] == 0 and made.learnt == [2]
    with pytest.raises(DataError, match="turn 2 is from function_call and must be JSON"):
        example("sharegpt", {"conversations": [said[0], {"from": "function_call", "value": "weather(Wien)"}]})


def test_a_row_s_own_system_message_goes_before_the_recipe_s():
    row = {"instruction": "Add.", "output": "3", "system": "Own."}
    chat = example({"method": "instruction", "render": "chat", "system": "S"}, row)
    assert chat.messages == turns(("system", "Own."), ("user", "Add."), ("assistant", "3"))
    assert example("instruction", row).prompt.startswith("Own.\n\n### Instruction")
    assert example("instruction", {**row, "system": ""}).prompt.startswith("Below is")
    assert (
        example("prompt_completion", {"prompt": "a", "completion": "b", "system": "Own."}).prompt
        == "Own.\n\na"
    )
    talk = {"messages": [*turns(("system", "Mine."), ("assistant", "Ho"))], "system": "Own."}
    with pytest.raises(DataError, match=r"another one in column 'system'.*ignore: \[system\]"):
        example("chat", talk)
    assert example({"method": "chat", "ignore": ["system"]}, talk).messages[0]["content"] == "Mine."


def test_the_history_of_an_instruction_is_read_before_it_and_not_learnt():
    row = {"instruction": "And 2 3?", "output": "5", "system": "S", "history": [["Add 1 2.", "3"]]}
    made = example({"method": "instruction", "render": "chat"}, row)
    assert made.messages == turns(
        ("system", "S"), ("user", "Add 1 2."), ("assistant", "3"), ("user", "And 2 3?"), ("assistant", "5")
    )
    assert made.learnt == [4]
    with pytest.raises(DataError, match=r"'history' must be a list of \[question, answer\]"):
        example({"method": "instruction", "render": "chat"}, {**row, "history": ["Add 1 2."]})


PLAIN = {
    "text": ("text", {"text": "a"}),
    "prompt_completion": ("prompt_completion", {"prompt": "a", "completion": "b"}),
    "instruction": ("instruction", {"instruction": "a", "output": "b"}),
    "columns": ({"method": "columns", "prompt": "{a}", "completion": "{b}"}, {"a": "x", "b": "y"}),
}


@pytest.mark.parametrize("case", PLAIN)
def test_columns_that_mean_something_and_are_not_read_are_named_apart_from_others(case):
    format, row = PLAIN[case]
    config = parse_choice(FORMATS, format)
    made = FORMATS.get(config.method)(config)
    assert made.unread({**row, "history": [], "tools": "[]", "weight": 1, "gone": None}) == Notes()
    held = {**row, "id": 3, "history": [["q", "a"]], "weight": 0.5}
    assert made.unread(held) == Notes(unwritten=("history", "weight"), unread=("id",))
    ignoring = config.model_copy(update={"ignore": ["history", "weight", "id"]})
    assert FORMATS.get(config.method)(ignoring).unread(held) == Notes()


def test_tools_of_plain_pairs_are_refused_and_of_rendered_ones_read():
    row = {"prompt": "a", "chosen": "b", "rejected": "c", "tools": [TOOL]}
    with pytest.raises(DataError, match=r"data\.format\.render: chat"):
        example("preference", row)
    assert example({"method": "preference", "render": "chat"}, row).rejected.tools


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
    "list": (
        "prompt_completion",
        {"prompt": [1], "completion": "b"},
        "column 'prompt': message 1 needs role",
    ),
    "object": ("prompt_completion", {"prompt": {"a": 1}, "completion": "b"}, "holds a dict"),
    "null_output": ("instruction", {"instruction": "a", "output": None}, "column 'output' is null"),
    "no_list": ("chat", {"messages": "hi"}, "must be a list of messages"),
    "empty_list": ("chat", {"messages": []}, "must be a list of messages"),
    "sharegpt_keys": ("chat", {"messages": SAID}, "data.format: sharegpt"),
    "chat_keys": ("sharegpt", {"conversations": [{"role": "user", "content": "x"}]}, "data.format: chat"),
    "role": ("chat", {"messages": [{"role": "narrator", "content": "x"}]}, "role 'narrator'"),
    "speaker": ("sharegpt", {"conversations": [{"from": "bard", "value": "x"}]}, "data.format.roles"),
    "no_text": ("chat", {"messages": [{"role": "user", "content": None}]}, "content of type NoneType"),
    "parts": ("chat", {"messages": [{"role": "user", "content": [{"text": "x"}]}]}, "content of type list"),
    "image": (
        "chat",
        {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}]},
        "message 1 (user): part 1 of its content is of type 'image_url'",
    ),
    "weight": ("chat", {"messages": [{"role": "assistant", "content": "x", "weight": 2}]}, "weight 2"),
    "weight_of_user": ("chat", {"messages": [{"role": "user", "content": "x", "weight": 1}]}, "weight 1"),
    "weight_that_is_true": (
        "chat",
        {"messages": [{"role": "assistant", "content": "x", "weight": True}]},
        "True",
    ),
    "other_weight": (
        "sharegpt",
        {"conversations": [{"from": "gpt", "value": "x", "mask": False}]},
        "the field 'mask'; whether an answer is learnt is read from `weight`",
    ),
    "half_a_train": (
        "chat",
        {"messages": [{"role": "assistant", "content": "x", "train": 0.5}]},
        "train 0.5",
    ),
    "loss_that_is_one": (
        "chat",
        {"messages": [{"role": "assistant", "content": "x", "loss": 1.0}]},
        "loss 1.0",
    ),
    "train_against_weight": (
        "chat",
        {"messages": [{"role": "assistant", "content": "x", "train": False, "weight": 1}]},
        "message 1 (assistant) is to be learnt by one of train, weight and not by another",
    ),
    "train_against_training": (
        "chat",
        {"messages": [{"role": "assistant", "content": "x", "train": False, "training": True}]},
        "by one of train, training and not by another",
    ),
    "train_of_user": (
        "chat",
        {"messages": [{"role": "user", "content": "x", "train": True}]},
        "only an assistant's",
    ),
    "no_call": (
        "chat",
        {"messages": [{"role": "assistant", "tool_calls": ["weather"]}]},
        "tool_calls must be a list of objects",
    ),
    "call_alone": (
        "chat",
        {"messages": [{"role": "assistant", "tool_calls": CALL}]},
        "must be a list of objects",
    ),
    "no_answer": ("sharegpt", {"conversations": [{"from": "gpt", "value": ""}]}, "neither text nor a call"),
    "no_tools": (
        "chat",
        {"messages": [{"role": "assistant", "content": "x"}], "tools": "a"},
        "a list of tools",
    ),
    "number_system": ("instruction", {"instruction": "a", "output": "b", "system": 7}, "must be text"),
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
