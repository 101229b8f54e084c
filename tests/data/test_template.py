"""`data.template` on a tokenizer: what is written, what ends an answer, what marks that are no tokens cost."""

from __future__ import annotations

from typing import Any

import pytest

from lrft.data.prepare import prepare
from lrft.data.rows import Rows
from lrft.data.show import spans
from lrft.data.template import put_on
from lrft.registry.errors import RecipeError
from lrft.registry.templates import template_names

SYSTEM = {"role": "system", "content": "be kind"}
TALK = [
    {"role": "user", "content": "how ?"},
    {"role": "assistant", "content": "so"},
    {"role": "user", "content": "and now ?"},
    {"role": "assistant", "content": "no"},
]
WRITTEN = {
    "chatml": (
        "<|im_start|>system\nbe kind<|im_end|>\n"
        "<|im_start|>user\nhow ?<|im_end|>\n<|im_start|>assistant\nso<|im_end|>\n"
        "<|im_start|>user\nand now ?<|im_end|>\n<|im_start|>assistant\nno<|im_end|>\n"
    ),
    "llama3": (
        "<|start_header_id|>system<|end_header_id|>\n\nbe kind</s><|start_header_id|>user<|end_header_id|>\n\nhow ?</s>"
        "<|start_header_id|>assistant<|end_header_id|>\n\nso</s>"
        "<|start_header_id|>user<|end_header_id|>\n\nand now ?</s>"
        "<|start_header_id|>assistant<|end_header_id|>\n\nno</s>"
    ),
    "gemma": (
        "<start_of_turn>user\nbe kind\n\nhow ?<end_of_turn>\n<start_of_turn>model\nso<end_of_turn>\n"
        "<start_of_turn>user\nand now ?<end_of_turn>\n<start_of_turn>model\nno<end_of_turn>\n"
    ),
    "mistral": "[INST] be kind\n\nhow ?[/INST] so</s>[INST] and now ?[/INST] no</s>",
    "zephyr": "<|system|>\nbe kind</s>\n<|user|>\nhow ?</s>\n<|assistant|>\nso</s>\n"
    "<|user|>\nand now ?</s>\n<|assistant|>\nno</s>\n",
    "plain": "System: be kind\nUser: how ?\nAssistant: so</s>\nUser: and now ?\nAssistant: no</s>\n",
}
STOPS = {"chatml": "<|im_end|>", "gemma": "<end_of_turn>"}
TOOL = {"type": "function", "function": {"name": "weather", "description": "of a city", "parameters": {}}}
CALL = {"type": "function", "function": {"name": "weather", "arguments": {"city": "Wien"}}}
CALLED = [
    TALK[0],
    {"role": "assistant", "content": "", "tool_calls": [CALL, CALL]},
    {"role": "tool", "content": "sunny"},
    {"role": "tool", "content": "warm"},
    {"role": "assistant", "content": "It is sunny.", "reasoning_content": "let me see"},
]


@pytest.fixture
def dressed(byte_tokenizer):
    """`dressed(template)` -> the tokenizer with it, and its stop tokens; before, `</s>` ends a text."""

    def make(template: str, **kind: Any) -> tuple[Any, set[str]]:
        tokenizer = byte_tokenizer(**kind)
        stops = put_on(tokenizer, {tokenizer.eos_token_id}, template)
        return tokenizer, set(tokenizer.convert_ids_to_tokens(sorted(stops)))

    return make


@pytest.fixture
def report(dressed, renderer):
    def make(template, *rows, format="chat"):
        tokenizer, stops = dressed(template)
        held = Rows(list(rows), "rows.jsonl", "", lines=range(1, len(rows) + 1))
        return prepare(held, renderer(tokenizer, format, stops=stops)).report

    return make


def text(tokenizer: Any, messages: list[Any], **more: Any) -> str:
    return tokenizer.apply_chat_template(messages, tokenize=False, **more)


@pytest.mark.parametrize("name", template_names())
def test_a_named_template_writes_a_conversation_in_its_form(dressed, name):
    tokenizer, stops = dressed(name)
    assert text(tokenizer, [SYSTEM, *TALK]) == WRITTEN[name]
    assert stops == {"</s>", STOPS.get(name, "</s>")} and tokenizer.eos_token == STOPS.get(name, "</s>")


@pytest.mark.parametrize("name", template_names())
def test_every_answer_of_it_is_learnt_with_its_stop_and_follows_what_is_asked(dressed, renderer, name):
    tokenizer, stops = dressed(name)
    rendering = renderer(tokenizer, "chat", stops=stops)
    for messages in (TALK, [SYSTEM, *TALK]):
        encoded = rendering.encode({"messages": messages})
        end = tokenizer.eos_token
        learnt = [words for words, wanted in spans(encoded, tokenizer) if wanted]
        assert [words.strip() for words in learnt] == [f"so{end}", f"no{end}"]
        asked = rendering.prompt_ids({"messages": messages})
        assert encoded.input_ids[: len(asked)] == asked and not encoded.merged and not encoded.extra_bos
        whole = tokenizer.apply_chat_template(messages[:-1], add_generation_prompt=True)["input_ids"]
        assert whole == asked


@pytest.mark.parametrize("name", template_names())
def test_an_answer_as_it_is_generated_is_written_back_as_it_was_learnt(dressed, renderer, name):
    """A server hands out what followed the prompt, and clients send it back as the earlier answer."""
    tokenizer, stops = dressed(name)
    encoded = renderer(tokenizer, "chat", stops=stops).encode({"messages": TALK[:2]})
    generated = next(words for words, wanted in spans(encoded, tokenizer) if wanted)
    said = {"role": "assistant", "content": generated.removesuffix(tokenizer.eos_token)}
    assert text(tokenizer, [TALK[0], said, *TALK[2:]]) == text(tokenizer, TALK)


@pytest.mark.parametrize("name", template_names())
def test_a_text_begins_with_the_token_that_the_tokenizer_begins_texts_with(dressed, renderer, name):
    tokenizer, stops = dressed(name, bos=True)
    encoded = renderer(tokenizer, "chat", stops=stops).encode({"messages": TALK})
    assert encoded.input_ids.count(tokenizer.bos_token_id) == 1
    assert encoded.input_ids[0] == tokenizer.bos_token_id and encoded.extra_bos == 0
    assert not text(dressed(name)[0], TALK).startswith("<s>")


@pytest.mark.parametrize("name", template_names())
def test_what_is_saved_writes_the_same_without_lrft(dressed, tmp_path, name):
    from transformers import AutoTokenizer

    tokenizer, _ = dressed(name)
    tokenizer.save_pretrained(tmp_path)
    alone = AutoTokenizer.from_pretrained(tmp_path)
    assert text(alone, TALK) == text(tokenizer, TALK) and alone.eos_token == tokenizer.eos_token


def test_marks_that_are_no_tokens_are_told_with_their_cost(dressed, capsys):
    tokenizer, stops = dressed("llama3")
    said = capsys.readouterr().err
    cost = len(tokenizer("<|start_header_id|>")["input_ids"])
    assert (
        cost > 1 and f"<|start_header_id|> {cost}, <|end_header_id|> " in said and "model.tokenizer" in said
    )
    assert "no token <|eot_id|>, so messages end in its end-of-text token </s>" in said
    assert stops == {"</s>"}
    for name in ("chatml", "gemma", "mistral", "plain"):
        dressed(name)
        assert capsys.readouterr().err == ""


def test_calls_tools_results_and_thoughts_reach_the_text_of_chatml(report, dressed):
    row = {"messages": CALLED, "tools": [TOOL]}
    found = report("chatml", row)
    found.check(False, "error")
    assert not found.left_out and not found.unread
    written = text(dressed("chatml")[0], CALLED, tools=[TOOL])
    call = '<tool_call>\n{"name": "weather", "arguments": {"city": "Wien"}}\n</tool_call>'
    assert f"<|im_start|>assistant\n{call}\n{call}<|im_end|>\n" in written
    results = (
        "\n<tool_response>\nsunny\n</tool_response>\n<tool_response>\nwarm\n</tool_response><|im_end|>\n"
    )
    assert f"<|im_start|>user{results}" in written
    assert "assistant\n<think>\nlet me see\n</think>\n\nIt is sunny.<|im_end|>" in written


@pytest.mark.parametrize("name", ["llama3", "plain", "zephyr"])
@pytest.mark.parametrize("field", ["tools", "tool_calls", "reasoning_content"])
def test_what_another_template_does_not_write_stops_the_gate_by_its_name(report, name, field):
    answer = {"role": "assistant", "content": "so"}
    if field == "tool_calls":
        answer["tool_calls"] = [CALL]
    if field == "reasoning_content":
        answer["reasoning_content"] = "let me see"
    row = {"messages": [TALK[0], answer], **({"tools": [TOOL]} if field == "tools" else {})}
    found = report(name, row)
    assert found.unwritten == {field: 1}


@pytest.mark.parametrize("name", ["gemma", "mistral"])
def test_roles_that_a_template_has_no_turn_for_are_refused(report, name):
    from lrft.registry.errors import DataError

    with pytest.raises(DataError, match="user and assistant alone"):
        report(name, {"messages": [TALK[0], {"role": "tool", "content": "x"}, TALK[1]]})
    with pytest.raises(DataError, match="only before a question"):
        report(name, {"messages": [SYSTEM, TALK[1], *TALK[2:]]}, format={"method": "chat", "learn": "last"})


def test_the_stop_of_a_file_is_the_first_special_token_after_an_answer(dressed):
    last = "{% if not add_generation_prompt %}</s>{% endif %}"
    own = "{% for m in messages %}{{ m.content }}<|im_end|>\n{% endfor %}" + last
    tokenizer, stops = dressed(own)
    assert stops == {"</s>", "<|im_end|>"} and tokenizer.eos_token == "<|im_end|>"
    assert tokenizer.chat_template == own
    kept, stops = dressed(own.replace("</s>", "{{ eos_token }}"))
    assert stops == {"</s>", "<|im_end|>"} and kept.eos_token == "</s>", "the template writes it"


@pytest.mark.parametrize(
    ("template", "said"),
    [
        ("{% for m in messages %}{{ m.content }}\n{% endfor %}", "holds no special token"),
        ("{% for m in messages %}{{ m.role }}{% endfor %}", "does not write the text of an answer"),
        ("{% for m in messages %}{{ m.content }}", "cannot be written"),
        ("{{ raise_exception('never') }}", "the chat template refuses the conversation: never"),
    ],
)
def test_a_template_that_cannot_serve_is_refused(dressed, template, said):
    with pytest.raises(RecipeError, match=said) as raised:
        dressed(template)
    assert "data.template" in str(raised.value)
