"""Answers that a chat template puts a block of thoughts before, scored as they were learnt."""

from __future__ import annotations

import pytest

from lrft.registry.axes import TASKS
from lrft.registry.config import parse_choice

BLOCK = "<think>\n\n</think>\n\n"
TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m.role }}{{ '\n' }}"
    "{% if m.role == 'assistant' %}<think>\n{{ m.reasoning_content }}{{ '\n' }}</think>\n\n{% endif %}"
    "{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def row(answer: str, **thoughts: str) -> dict:
    said = {"role": "assistant", "content": answer, **thoughts}
    return {"messages": [{"role": "user", "content": "how many?"}, said]}


@pytest.fixture
def scored(make_subject, say):
    def score(rows, outputs, task="exact_match", **options):
        subject = make_subject(rows=rows, format=options.pop("format", "chat"))
        subject.tokenizer.chat_template = TEMPLATE
        say(subject, outputs, **options)
        return TASKS.get(task)(parse_choice(TASKS, task)).run(subject, None)

    return score


def test_the_block_is_given_to_an_answer_without_thoughts_and_said_in_the_settings(scored):
    found = scored([row("two"), row("three")], ["two", BLOCK + "three"])
    assert [sample["correct"] for sample in found.samples] == [True, False]
    assert all(sample["prompt"].endswith(BLOCK) for sample in found.samples)
    assert found.settings["thinking"] == {"given": [BLOCK], "left_out_through": []}


def test_what_is_thought_before_an_answer_with_thoughts_is_left_out(scored):
    rows = [row(answer, reasoning_content="one and one") for answer in ("two", "three", "two")]
    found = scored(rows, ["<think>\nthree?\n</think>\n\ntwo", "<think>\nthree", "two"], unstopped=(1,))
    assert [sample["correct"] for sample in found.samples] == [True, False, True]
    assert found.samples[0]["output"] == "two" and found.samples[0]["written"].startswith("<think>")
    assert all("one and one" not in s["prompt"] and not s["prompt"].endswith(BLOCK) for s in found.samples)
    assert found.settings["thinking"] == {"given": [], "left_out_through": ["</think>"]}


def test_a_number_is_not_read_out_of_unfinished_thoughts(scored):
    rows = [row("#### 2", reasoning_content="1 and 1")] * 2
    found = scored(
        rows, ["<think>\nmaybe 2", "<think>\n7?\n</think>\n\n#### 2"], task="gsm8k", unstopped=(0,)
    )
    assert [sample["extracted"] for sample in found.samples] == [None, "2"]


def test_the_options_of_a_question_follow_the_block(make_subject, monkeypatch):
    made = {
        "instruction": "Ice is cold?\n\nAnswer format: true/false",
        "output": "it is true",
        "answer": "true",
    }
    subject = make_subject(rows=[made], format={"method": "instruction", "render": "chat"})
    subject.tokenizer.chat_template = TEMPLATE
    heard: list[tuple[str, str]] = []

    def listen(asked, prompts, continuations, *rest):
        heard.extend(
            zip(map(asked.tokenizer.decode, prompts), map(asked.tokenizer.decode, continuations), strict=True)
        )
        return [(-1.0, len(tokens)) for tokens in continuations]

    monkeypatch.setattr("lrft.evaluation.tasks.multiple_choice.continuation_logprobs", listen)
    found = TASKS.get("multiple_choice")(parse_choice(TASKS, "multiple_choice")).run(subject, None)
    assert all(prompt.endswith(BLOCK) for prompt, _ in heard)
    assert [answer for _, answer in heard] == ["it is true", "it is false", "true", "false"]
    assert found.settings["thinking"]["given"] == [BLOCK]


def test_templates_without_thoughts_leave_no_such_setting(make_subject, say):
    subject = make_subject(rows=[{"prompt": "p", "completion": "two"}])
    say(subject, ["two"])
    found = TASKS.get("exact_match")(parse_choice(TASKS, "exact_match")).run(subject, None)
    assert "thinking" not in found.settings and "written" not in found.samples[0]
