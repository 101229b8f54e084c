"""Chat templates of many families, each written here to prove one rule about what is learnt and asked."""

from __future__ import annotations

import json
from typing import Any

import pytest

from lrft.data.prepare import prepare
from lrft.data.show import facts, spans
from lrft.data.sources import Rows
from lrft.data.thoughts import said
from lrft.registry.errors import DataError

PROMPTED = "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
CHATML = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}" + PROMPTED
# Qwen 2.5: tools in the system message, calls as lines of JSON between marks.
QWEN_TOOLS = (
    "{% if tools %}<|im_start|>system\n# Tools\n{% for t in tools %}{{ t | tojson }}\n{% endfor %}<|im_end|>\n"
    "{% endif %}"
    "{% for m in messages %}<|im_start|>{{ 'user' if m.role == 'tool' else m.role }}\n"
    "{% if m.content %}{{ m.content }}{% endif %}"
    "{% if m.tool_calls %}{% for c in m.tool_calls %}<tool_call>\n"
    '{"name": "{{ c.function.name }}", "arguments": {{ c.function.arguments | tojson }}}\n</tool_call>'
    "{% endfor %}{% endif %}<|im_end|>\n{% endfor %}" + PROMPTED
)
# Llama 3.1: one call a message, and nothing is said of a second one.
FIRST_CALL = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{% if m.tool_calls %}"
    '{"name": "{{ m.tool_calls[0].function.name }}", "parameters": {{ m.tool_calls[0].function.arguments | tojson }}}'
    "{% else %}{{ m.content }}{% endif %}<|im_end|>\n{% endfor %}" + PROMPTED
)
# Mistral: calls with their ids, results by id, the system message inside the last question.
MISTRAL = (
    "{% set ns = namespace(system='', last=0) %}{% for m in messages %}"
    "{% if m.role == 'system' %}{% set ns.system = m.content + '\n\n' %}{% endif %}"
    "{% if m.role == 'user' %}{% set ns.last = loop.index0 %}{% endif %}{% endfor %}"
    "<s>{% for m in messages if m.role != 'system' %}"
    "{% if m.role == 'user' %}[INST]{% if m == messages[ns.last] %}{{ ns.system }}{% endif %}{{ m.content }}[/INST]"
    "{% elif m.tool_calls %}[TOOL_CALLS] {{ m.tool_calls | map(attribute='function') | list | tojson }}</s>"
    "{% elif m.role == 'tool' %}[TOOL_RESULTS] {\"content\": {{ m.content | tojson }}}[/TOOL_RESULTS]"
    "{% else %}{{ m.content }}</s>{% endif %}{% endfor %}"
)
# Qwen 3: an answer without thoughts gets an empty block of them, earlier thoughts are dropped.
QWEN3 = (
    "{% set ns = namespace(last=0) %}{% for m in messages %}{% if m.role == 'user' %}{% set ns.last = loop.index0 %}"
    "{% endif %}{% endfor %}{% for m in messages %}{% if m.role == 'assistant' %}"
    "{% set body = m.content %}{% set thought = m.reasoning_content or '' %}{% if '</think>' in body %}"
    "{% set thought = body.split('</think>')[0].split('<think>')[-1].strip() %}"
    "{% set body = body.split('</think>')[-1].lstrip() %}{% endif %}<|im_start|>assistant\n"
    "{% if loop.index0 > ns.last and (loop.last or thought) %}<think>\n{{ thought }}\n</think>\n\n{% endif %}"
    "{{ body }}{% for c in m.tool_calls or [] %}<tool_call>{{ c.function | tojson }}</tool_call>{% endfor %}"
    "<|im_end|>\n"
    "{% else %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endif %}{% endfor %}" + PROMPTED
)
# gpt-oss: thoughts and answers on channels of one turn.
CHANNELS = (
    "{% for m in messages %}{% if m.role == 'assistant' %}"
    "{% if m.thinking %}<|im_start|>assistant<|channel|>analysis<|message|>{{ m.thinking }}[/INST]{% endif %}"
    "<|im_start|>assistant<|channel|>final<|message|>{{ m.content }}<|im_end|>"
    "{% else %}<|im_start|>{{ m.role }}<|message|>{{ m.content }}[/INST]{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant{% endif %}"
)
# Gemma: roles alternate, no system message, contents trimmed.
GEMMA = (
    "{{ bos_token }}{% if messages[0].role == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
    "{% for m in messages %}{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Conversation roles must alternate') }}{% endif %}"
    "<start_of_turn>{{ 'model' if m.role == 'assistant' else m.role }}\n{{ m.content | trim }}<end_of_turn>\n"
    "{% endfor %}"
    "{% if add_generation_prompt %}<start_of_turn>model\n{% endif %}"
)
# Phi-3: end of text after the last turn only.
PHI3 = (
    "{% for m in messages %}<|{{ m.role }}|>\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>\n{% else %}{{ eos_token }}{% endif %}"
)
# The stop token between turns, and none at the end.
BETWEEN = (
    "{% for m in messages %}{% if m.role == 'user' %}USER: {{ m.content }} ASSISTANT:{% else %} {{ m.content }}"
    "{% if not loop.last %}</s>{% endif %}{% endif %}{% endfor %}"
)
NAMED = CHATML.replace(
    "{{ m.role }}\n", "{{ m.role }}{% if m.name %} name={{ m.name }}{% endif %}{{ '\\n' }}"
)


def user(content: Any, **more: Any) -> dict[str, Any]:
    return {"role": "user", "content": content, **more}


def answer(content: Any = None, **more: Any) -> dict[str, Any]:
    return {"role": "assistant", "content": content, **more}


def call(name: str, arguments: Any) -> dict[str, Any]:
    return {"id": "c1", "type": "function", "function": {"name": name, "arguments": arguments}}


TOOL = {"type": "function", "function": {"name": "weather", "description": "of a city", "parameters": {}}}
CALLED = [
    user("how is it ?"),
    answer(tool_calls=[call("weather", {"city": "Wien"})]),
    {"role": "tool", "content": "sunny", "tool_call_id": "c1"},
    answer("It is sunny."),
]


@pytest.fixture
def made(byte_tokenizer, renderer):
    def make(template, format="chat", eos="<|im_end|>", stops=None):
        return renderer(byte_tokenizer(template, eos=eos), format, stops=stops)

    return make


@pytest.fixture
def report(made):
    def make(template, *rows, format="chat", **kind):
        held = Rows(list(rows), "rows.jsonl", "", lines=range(1, len(rows) + 1))
        return prepare(held, made(template, format, **kind)).report

    return make


def learnt(renderer: Any, *messages: dict[str, Any], **columns: Any) -> list[str]:
    encoded = renderer.encode({"messages": list(messages), **columns})
    return [text for text, wanted in spans(encoded, renderer.tokenizer) if wanted]


def refusal(report: Any) -> str:
    with pytest.raises(DataError) as raised:
        report.check(False, "error")
    return str(raised.value)


@pytest.mark.parametrize("arguments", [{"city": "Wien"}, '{"city": "Wien"}'])
def test_an_answer_that_is_only_a_call_is_learnt_as_the_call(made, arguments):
    calls = [user("how is it ?"), answer(tool_calls=[call("weather", arguments)])]
    for content in ({}, {"content": ""}):
        assert learnt(made(QWEN_TOOLS), calls[0], {**calls[1], **content}) == [
            '<tool_call>\n{"name": "weather", "arguments": {"city": "Wien"}}\n</tool_call><|im_end|>'
        ]


def test_calls_and_their_results_go_to_the_template_whole(made, report):
    assert learnt(made(MISTRAL, eos="</s>"), *CALLED) == [
        '[TOOL_CALLS] [{"name": "weather", "arguments": {"city": "Wien"}}]</s>',
        "It is sunny.</s>",
    ]
    for template, eos in ((QWEN_TOOLS, "<|im_end|>"), (FIRST_CALL, "<|im_end|>"), (MISTRAL, "</s>")):
        found = report(template, {"messages": CALLED}, eos=eos)
        found.check(False, "error")
        assert not found.left_out and not found.unread


@pytest.mark.parametrize("template", ["CHATML", "FIRST_CALL"])
def test_calls_that_a_template_does_not_write_stop_the_gate_by_their_name(report, template):
    two = [call("weather", {"city": "Wien"}), call("weather", {"city": "Graz"})]
    said = {"messages": [user("how is it ?"), answer("Let me see.", tool_calls=two)]}
    message = refusal(report(globals()[template], said, {"messages": CALLED[:1] + CALLED[3:]}))
    assert "1 of 2 rows have `tool_calls`, which does not reach the text (first: rows.jsonl:1)" in message
    assert "data.format.ignore: [tool_calls]" in message


def test_equal_calls_of_which_one_is_dropped_are_seen(report):
    twice = {"messages": [user("a"), answer(tool_calls=[call("weather", {"city": "Wien"})] * 2)]}
    assert "`tool_calls`" in refusal(report(FIRST_CALL, twice))
    report(QWEN_TOOLS, twice).check(False, "error")


@pytest.mark.parametrize(
    "tools", [[TOOL], [TOOL["function"]], '[{"name": "weather", "description": "of a city"}]']
)
def test_the_tools_of_a_row_stand_in_its_prompt(made, report, tools):
    row = {"messages": CALLED, "tools": tools}
    renderer = made(QWEN_TOOLS)
    assert '"name": "weather"' in renderer.tokenizer.decode(renderer.encode(row).input_ids).split("</")[0]
    report(QWEN_TOOLS, row).check(False, "error")
    assert "1 of 1 rows have `tools`" in refusal(report(FIRST_CALL, row))
    report(FIRST_CALL, row, format={"method": "chat", "ignore": ["tools"]}).check(False, "error")


def test_legacy_functions_are_tools(made):
    row = {"messages": CALLED, "functions": [TOOL["function"]]}
    same = {"messages": CALLED, "tools": [TOOL]}
    assert made(QWEN_TOOLS).encode(row) == made(QWEN_TOOLS).encode(same)


def test_a_field_that_the_template_writes_passes_and_another_one_stops_the_gate(report):
    rows = [
        {"messages": [user("how ?", name="Ann"), answer("so")]},
        {"messages": [user("how ?"), answer("so")]},
    ]
    report(NAMED, *rows).check(False, "error")
    found = report(CHATML, *rows)
    assert found.unwritten == {"name": 1} and ("not in the text", "name (1)") in facts(found)
    assert "1 of 2 rows have `name`" in refusal(found)
    ignored = report(CHATML, *rows, format={"method": "chat", "ignore": ["name"]})
    ignored.check(False, "error")


@pytest.mark.parametrize("field", ["reasoning_content", "reasoning", "refusal", "function_call", "prefix"])
def test_no_field_that_changes_what_is_said_is_dropped_in_silence(report, field):
    held = {"name": "weather", "arguments": "{}"} if field == "function_call" else "so I think"
    assert f"`{field}`" in refusal(
        report(CHATML, {"messages": [user("how ?"), answer("so", **{field: held})]})
    )


def test_other_fields_and_columns_are_told(report):
    row = {"messages": [user("how ?", id=3), answer("so", score=0.5)], "source": "web", "empty": None}
    found = report(CHATML, row)
    found.check(False, "error")
    assert found.unread == {"source": 1, "id": 1, "score": 1}
    assert ("not read", "source (1), id (1), score (1)") in facts(found)


@pytest.mark.parametrize("column", ["images", "documents", "history"])
def test_a_column_that_means_something_and_is_not_read_stops_the_gate(report, column):
    row = {"messages": [user("how ?"), answer("so")], column: ["x"]}
    assert f"`{column}`" in refusal(report(CHATML, row))
    report(CHATML, {**row, column: []}).check(False, "error")
    report(CHATML, row, format={"method": "chat", "ignore": [column]}).check(False, "error")


def test_a_turn_of_weight_0_is_read_and_not_learnt(made, report):
    said = [user("how ?"), answer("no idea", weight=0), user("and now ?"), answer("so", weight=1)]
    assert learnt(made(CHATML), *said) == ["so<|im_end|>"]
    assert learnt(made(CHATML), *said[:3], {**said[3], "weight": 0}) == []
    assert learnt(made(CHATML), *said[:2], user("?"), answer("", weight=0), user("?"), answer("so")) == [
        "so<|im_end|>"
    ]
    report(CHATML, {"messages": said}).check(False, "error")


@pytest.mark.parametrize("name", ["train", "training", "loss"])
def test_what_other_tools_call_the_weight_is_read_where_it_says_yes_or_no(made, report, name):
    for no, yes in ((False, True), *(((0, 1),) if name == "train" else ())):
        said = [
            user("how ?", **{name: no}),
            answer("no idea", **{name: no}),
            user("?"),
            answer("so", **{name: yes}),
        ]
        assert learnt(made(CHATML), *said) == ["so<|im_end|>"]
        found = report(CHATML, {"messages": said})
        found.check(False, "error")
        assert not found.unread
    turns = [{"from": "human", "value": "how ?"}, {"from": "gpt", "value": "so", name: False}]
    row = {"conversations": [*turns, *turns[:1], {"from": "gpt", "value": "no"}]}
    assert made(CHATML, "sharegpt").encode(row).targets == made(CHATML).encode({"messages": THREE}).targets


THREE = [user("how ?"), answer("so", weight=0), user("how ?"), answer("no")]


def own_tools(method: str = "chat", **more: Any) -> dict[str, Any]:
    return {"method": method, "tools": json.dumps([TOOL["function"]]), **more}


def test_tools_of_the_recipe_are_those_of_rows_that_bring_none(made, report):
    other = {**TOOL["function"], "name": "tides"}
    bare, own, brings = (
        {"messages": CALLED},
        {"messages": CALLED, "tools": [TOOL]},
        {"messages": CALLED, "tools": [other]},
    )
    settled = made(QWEN_TOOLS, own_tools())
    assert settled.encode(bare) == made(QWEN_TOOLS).encode(own)
    assert settled.encode(brings) == made(QWEN_TOOLS).encode(brings)
    assert settled.prompt_ids(bare) == made(QWEN_TOOLS).prompt_ids(own)
    report(QWEN_TOOLS, bare, format=own_tools()).check(False, "error")
    assert "1 of 1 rows have `tools`" in refusal(report(FIRST_CALL, bare, format=own_tools()))


def test_tools_of_the_recipe_stand_in_both_prompts_of_a_pair_and_never_in_plain_text(made):
    row = {"prompt": "how ?", "chosen": "so", "rejected": "no"}
    pair = made(QWEN_TOOLS, own_tools("preference", render="chat"))
    texts = [pair.tokenizer.decode(document.input_ids) for document in pair.encode(row).documents()]
    assert len(texts) == 2 and all('"name": "weather"' in text for text in texts)
    with pytest.raises(DataError, match=r"data\.format\.tools: tools are written by a chat template only"):
        made(QWEN_TOOLS, own_tools("preference")).encode(row)


def test_parts_are_one_text_or_what_the_template_makes_of_them(made):
    one, two = (
        [{"type": "text", "text": text} for text in texts] for texts in (["how ?"], ["how", "are you ?"])
    )
    assert made(CHATML).encode({"messages": [user(one), answer("so")]}) == made(CHATML).encode(
        {"messages": [user("how ?"), answer("so")]}
    )
    with pytest.raises(DataError, match=r"message 1 \(user\) has content of 2 parts, which this chat"):
        made(CHATML).encode({"messages": [user(two), answer("so")]})
    fails = CHATML.replace("{{ m.content }}", "{{ '' + m.content }}")
    with pytest.raises(
        DataError, match=r"message 1 \(user\): .*a content has 2 parts: join them into one text"
    ):
        made(fails).encode({"messages": [user(two), answer("so")]})
    joined = CHATML.replace(
        "{{ m.content }}",
        "{% if m.content is string %}{{ m.content }}{% else %}"
        "{% for p in m.content %}{{ p.text }} {% endfor %}{% endif %}",
    )
    assert learnt(made(joined), user(two), answer(two)) == ["how are you ? <|im_end|>"]


def test_a_message_that_the_template_leaves_out_is_told(report):
    silent = "{% for m in messages if m.role != 'system' %}" + CHATML.partition("%}")[2]
    row = {"messages": [{"role": "system", "content": "be kind"}, user("how ?"), answer("so")]}
    found = report(silent, row)
    found.check(False, "error")
    assert ("text left out or altered by the template", "1 (first: rows.jsonl:1)") in facts(found)
    assert not report(CHATML, row).left_out


def test_a_system_message_that_a_template_moves_is_not_left_out(report):
    row = {
        "messages": [
            {"role": "system", "content": "be kind"},
            user("how ?"),
            answer("so"),
            user("why ?"),
            answer("no"),
        ]
    }
    found = report(MISTRAL, row, eos="</s>", format={"method": "chat", "learn": "last"})
    assert not found.left_out


def test_an_answer_that_the_template_shortens_is_told(report):
    first = CHATML.replace("{{ m.content }}", "{{ m.content.split('|')[0] }}")
    assert report(first, {"messages": [user("how ?"), answer("so | or so")]}).left_out == 1
    assert report(first, {"messages": [user("how ?"), answer(" so ")]}).left_out == 0


THINKS = [user("how ?"), answer("so", reasoning_content="let me see"), user("and now ?"), answer("no")]


def test_thoughts_of_earlier_turns_that_a_template_drops_are_told_and_not_refused(report):
    last = {"method": "chat", "learn": "last"}
    found = report(QWEN3, {"messages": THINKS}, format=last)
    found.check(False, "error")
    assert (found.left_out, found.unwritten) == (1, {})
    inline = [THINKS[0], answer("<think>let me see</think>so"), *THINKS[2:]]
    assert report(QWEN3, {"messages": inline}, format=last).left_out == 1
    assert report(QWEN3, {"messages": THINKS[:2]}, format=last).left_out == 0
    closer = {"messages": [user("how ?"), answer("<think>let me see</think>so")]}
    assert report(QWEN3, closer, format=last).left_out == 0, (
        "other white space around the thoughts is no loss"
    )


def test_thoughts_given_under_two_names_are_written_once_and_that_is_enough(report):
    twice = {"messages": [user("how ?"), answer("so", reasoning="hm", reasoning_content="hm")]}
    report(QWEN3, twice).check(False, "error")


def test_thoughts_that_a_template_drops_later_cannot_be_learnt_in_every_turn(made):
    with pytest.raises(DataError, match=r"message 2: .* rewrites this answer .*learn: last"):
        made(QWEN3).encode({"messages": THINKS})


def test_the_empty_block_of_thoughts_is_learnt_and_given_to_the_scored_answer(made):
    renderer, row = made(QWEN3), {"messages": [user("how ?"), answer("so")]}
    assert learnt(renderer, *row["messages"]) == ["<think>\n\n</think>\n\nso<|im_end|>"]
    encoded, question = renderer.encode(row), renderer.question(row)
    assert encoded.input_ids[: len(question.prompt)] == question.prompt == renderer.prompt_ids(row)
    decoded = renderer.tokenizer.decode(question.prompt)
    assert decoded.endswith("<|im_start|>assistant\n<think>\n\n</think>\n\n") and question.given in decoded
    assert (renderer.tokenizer.decode(question.answer), question.reference, question.marks) == (
        "so",
        "so",
        None,
    )


@pytest.mark.parametrize("word", ["think", "<", "th"])
def test_an_answer_that_looks_like_the_block_before_it_begins_after_it(made, word):
    renderer = made(QWEN3)
    question = renderer.question({"messages": [user("how ?"), answer(word)]})
    assert renderer.tokenizer.decode(question.answer) == word and question.given == "<think>\n\n</think>\n\n"


def thoughtful(field: str | None) -> dict[str, Any]:
    return (
        answer("<think>\nlet me see\n</think>\n\nso")
        if field is None
        else answer("so", **{field: "let me see"})
    )


@pytest.mark.parametrize(
    ("template", "field"), [(QWEN3, "reasoning_content"), (QWEN3, "reasoning"), (QWEN3, None), (CHATML, None)]
)
def test_an_answer_with_thoughts_is_asked_without_them_and_read_after_them(made, template, field):
    renderer = made(template)
    question = renderer.question({"messages": [user("how ?"), thoughtful(field)]})
    prompt = renderer.tokenizer.decode(question.prompt)
    assert prompt.endswith("<|im_start|>assistant\n") and "see" not in prompt and not question.given
    assert question.reference == "so" and question.marks.closing == "</think>"

    def read(text):
        return said(renderer.tokenizer, renderer.tokenizer(text)["input_ids"], question.marks)

    assert read("<think>\nhm\n</think>\n\nso<|im_end|>") == "so"
    assert read("<think>\nhm so") == ""
    assert read("so<|im_end|>") == "so"


def test_channels_are_what_a_template_writes_before_an_answer_too(made):
    renderer = made(CHANNELS)
    plain = renderer.question({"messages": [user("how ?"), answer("so")]})
    assert plain.given == "<|channel|>final<|message|>" and plain.reference == "so"
    thinks = renderer.question({"messages": [user("how ?"), answer("so", thinking="let me see")]})
    assert not thinks.given and "see" not in renderer.tokenizer.decode(thinks.prompt)
    written = (
        "<|channel|>analysis<|message|>hm[/INST]<|im_start|>assistant<|channel|>final<|message|>so<|im_end|>"
    )
    assert said(renderer.tokenizer, renderer.tokenizer(written)["input_ids"], thinks.marks) == "so"


def test_the_reference_of_a_call_is_the_call_as_written(made):
    renderer = made(QWEN3)
    row = {"messages": [user("how ?"), answer(tool_calls=[call("weather", {"city": "Wien"})])]}
    question = renderer.question(row)
    assert question.reference == '<tool_call>{"name": "weather", "arguments": {"city": "Wien"}}</tool_call>'
    assert question.given == "<think>\n\n</think>\n\n"


TWO = [user("how ?"), answer("so"), user("and now ?"), answer("five six")]


def test_every_turn_is_learnt_where_a_template_writes_an_end_mark_only_at_the_end(made):
    renderer = made(PHI3, eos="</s>", stops={"</s>", "<|im_end|>"})
    assert learnt(renderer, *TWO) == ["so<|im_end|>", "five six<|im_end|>\n</s>"]


def test_every_turn_is_learnt_with_the_stop_token_that_a_template_writes_between_turns(made):
    assert learnt(made(BETWEEN, eos="</s>"), *TWO) == [" so</s>", " five six"]


def test_an_answer_that_goes_on_when_the_conversation_does_is_still_refused(made):
    longer = CHATML.replace(
        "{{ m.content }}", "{{ m.content }}{{ ' more' if m.role == 'assistant' and not loop.last }}"
    )
    with pytest.raises(DataError, match="rewrites this answer"):
        made(longer).encode({"messages": TWO})


def test_a_first_turn_of_the_assistant_is_learnt_where_the_template_has_a_prompt_for_it(made):
    assert learnt(made(CHATML), answer("hello"), *TWO) == [
        "hello<|im_end|>",
        "so<|im_end|>",
        "five six<|im_end|>",
    ]
    with pytest.raises(DataError, match=r"message 1 \(assistant\): .* nothing comes before; .* weight: 0"):
        made(CHATML.replace("{% for", "{{ messages[0].role.upper() }}{% for", 1)).encode(
            {"messages": [answer("hi"), *TWO]}
        )
    within = CHATML.replace(
        "{% endfor %}" + PROMPTED, "{% if loop.last %}" + PROMPTED + "{% endif %}{% endfor %}"
    )
    assert within.count(PROMPTED) == 1 and len(learnt(made(within), *TWO)) == 2
    with pytest.raises(DataError, match=r"message 1 \(assistant\): .* nothing comes before"):
        made(within).encode({"messages": [answer("hi"), *TWO]})
    opened = made(CHATML.replace("{% for", "{{ messages[0].role | length }}{% for", 1))
    assert learnt(opened, answer("hello", weight=0), *TWO) == ["so<|im_end|>", "five six<|im_end|>"]


def test_answers_in_a_row_are_learnt_each(made):
    assert learnt(made(CHATML), TWO[0], answer("so"), answer("or so")) == ["so<|im_end|>", "or so<|im_end|>"]


@pytest.mark.parametrize(
    ("template", "messages", "message"),
    [
        (
            GEMMA,
            [{"role": "system", "content": "be kind"}, *TWO],
            r"message 1 \(system\): .*System role not supported",
        ),
        (GEMMA, [*TWO, answer("more")], r"message 5 \(assistant\): .*must alternate"),
        ("{{ messages[1].content }}{{ 1 / 0 }}", TWO, r"message 1 \(user\): .*ZeroDivisionError"),
        ("{{ messages[0].content + 1 }}", TWO, r"message 1 \(user\): the chat template fails .*TypeError"),
        ("{{ messages[0].name.first }}", TWO, r"message 1 \(user\): .*refuses the conversation: .*name"),
        ("{% for m in messages", TWO, "line 1 of the chat template is no Jinja: unexpected end"),
        (CHATML, [user("how ?"), answer("")], r"message 2 \(assistant\) has neither text nor a call"),
        (CHATML, [user("how ?"), answer(" \n")], r"message 2 \(assistant\) has neither text nor a call"),
        (
            CHATML,
            [user("how ?"), answer("", tool_calls=[])],
            r"message 2 \(assistant\) has neither text nor a call",
        ),
    ],
)
def test_a_conversation_that_cannot_be_learnt_is_refused_by_message(made, template, messages, message):
    with pytest.raises(DataError, match=message):
        made(template).encode({"messages": messages})


def test_a_conversation_of_a_system_message_alone_has_no_target(report):
    assert report(CHATML, {"messages": [{"role": "system", "content": "be kind"}]}).without_target == 1
