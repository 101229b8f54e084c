"""Near duplicates among many texts, the lengths of rows, and prompts as a server would encode them."""

from __future__ import annotations

import random
from typing import Any

import pytest

from lrft.data import alike, asked
from lrft.data.alike import Split
from lrft.data.lengths import Lengths
from lrft.data.near import NEAR, Texts, words
from lrft.data.prepare import prepare
from lrft.data.rows import Rows

VOCABULARY = [f"word{k}" for k in range(5000)]
FRAME = "Below is an instruction that describes a task. Write a response that appropriately completes the request."


def near(texts: list[str]) -> list[tuple[int, int]]:
    found = Texts()
    for text in texts:
        found.add([text])
    return [(pair.earlier, pair.later) for pair in found.near()]


def drawn(draw: random.Random, count: int) -> str:
    return " ".join(draw.choices(VOCABULARY, k=count))


def changed(text: str, draw: random.Random, count: int) -> str:
    """The text with other words at so many places."""
    held = text.split()
    for place in draw.sample(range(len(held)), count):
        held[place] = "other"
    return " ".join(held)


def share(a: str, b: str) -> float:
    first, second = ({tuple(w[k : k + 3]) for k in range(len(w) - 2)} for w in (words(a), words(b)))
    return len(first & second) / len(first | second)


def test_every_pair_that_shares_enough_is_found_and_no_other():
    draw = random.Random(7)
    texts = [drawn(draw, 60) for _ in range(400)]
    for k in range(0, 400, 4):
        texts[k + 1] = changed(texts[k], draw, draw.randint(0, 5))
    expected = [(k, k + 1) for k in range(0, 400, 4) if share(texts[k], texts[k + 1]) >= NEAR]
    assert near(texts) == expected and 40 < len(expected) < 100


def test_a_frame_that_most_texts_share_makes_none_near_another():
    draw = random.Random(1)
    texts = [f"{FRAME} {drawn(draw, 4)}" for _ in range(100)]
    assert share(texts[0], texts[1]) > 0.6 and near(texts) == []
    texts[40] = texts[3].upper() + "!"
    assert near(texts) == [(3, 40)]


def test_of_a_crowd_each_is_near_an_earlier_one_and_a_copy_names_the_text_that_it_copies():
    draw = random.Random(2)
    text = drawn(draw, 60)
    texts = [drawn(draw, 60) for _ in range(200)]
    for k in (5, 50, 51, 120):
        texts[k] = changed(text, draw, 1)
    texts[130] = texts[120]
    found = {later: earlier for earlier, later in near(texts)}
    assert sorted(found) == [50, 51, 120, 130] and found[130] == 120
    assert all(earlier in (5, 50, 51, 120) for earlier in found.values())


@pytest.mark.parametrize("texts", [[], ["a"], ["", ""], ["one", "two"], ["", "a b c d", ""]])
def test_few_and_empty_texts_have_nothing_near(texts):
    assert near(texts) == []


def test_texts_shorter_than_a_run_are_near_when_they_are_equal():
    assert near(["two words", "two more", "Two words."]) == [(0, 2)]


def test_scripts_without_spaces_are_read_by_their_characters():
    assert words("東京は、Tokyo!") == ["東", "京", "は", "tokyo"]
    assert near(
        [
            "明日は雨が降るでしょう、傘を持って",
            "明日は雨が降るでしょう 傘を持って",
            "今日はとても良い天気です",
        ]
    ) == [(0, 1)]


def test_the_same_texts_give_the_same_pairs():
    draw = random.Random(3)
    texts = [drawn(draw, 30) for _ in range(50)]
    texts += [changed(text, draw, 1) for text in texts]
    assert near(texts) == near(texts) != []


def talk(question: str, answer: str) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]}


CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


@pytest.fixture
def split(byte_tokenizer, renderer):
    """`split(rows, name)` -> the rows of a file with their tokens, and what rendered them."""

    def make(rows, name="train.jsonl", format="chat", template=CHATML, **kind):
        rendering = renderer(byte_tokenizer(template, eos="<|im_end|>", **kind), format)
        held = Rows(rows, name, "", lines=range(1, len(rows) + 1))
        return Split(held, prepare(held, rendering).encoded), rendering

    return make


QUESTIONS = [
    talk(f"what is {drawn(random.Random(k), 12)}", drawn(random.Random(k + 99), 12)) for k in range(20)
]


def test_rows_that_nearly_repeat_others_are_named_and_equal_ones_left_to_the_gate(split):
    rows = [*QUESTIONS, QUESTIONS[4]]
    question, answer = (m["content"] for m in QUESTIONS[7]["messages"])
    rows.append(talk(question.upper() + "?", answer))
    train, rendering = split(rows)
    said = QUESTIONS[2]["messages"][0]["content"]
    nearly = talk(*(m["content"] + "." for m in QUESTIONS[9]["messages"]))
    held_out, _ = split(
        [QUESTIONS[1], talk(said, "something else"), talk("how ?", "so"), nearly], "test.jsonl"
    )
    heard = []
    found = alike.compare(rendering.format, train, held_out, lambda done, total: heard.append((done, total)))
    assert found.near == (("train.jsonl:22", "train.jsonl:8", 1.0),)
    assert found.held_out == (("test.jsonl:4", "train.jsonl:10", 1.0),)
    assert found.asked == (("test.jsonl:2", "train.jsonl:3"),)
    assert heard[-1] == (26, 26)
    assert found.facts() == [
        ("near duplicates", "1 (first: train.jsonl:22 like train.jsonl:8, 100%)"),
        ("held-out rows near a training row", "1 (first: test.jsonl:4 like train.jsonl:10, 100%)"),
        ("held-out questions asked in training", "1 (first: test.jsonl:2 like train.jsonl:3)"),
    ]
    assert found.record()["held_out_asked_in_training"] == [{"row": "test.jsonl:2", "like": "train.jsonl:3"}]


def test_good_rows_have_nothing_alike(split):
    train, rendering = split(QUESTIONS[:10])
    held_out, _ = split(QUESTIONS[10:], "test.jsonl")
    assert alike.compare(rendering.format, train, held_out, lambda *_: None).facts() == []


def test_pairs_are_compared_with_both_answers(split):
    rows = [
        {"prompt": drawn(random.Random(k), 9), "chosen": drawn(random.Random(k + 50), 9)} for k in range(12)
    ]
    rows = [{**row, "rejected": drawn(random.Random(k + 90), 9)} for k, row in enumerate(rows)]
    train, rendering = split([*rows, {**rows[3], "chosen": rows[3]["chosen"] + "!"}], format="preference")
    assert [pair[:2] for pair in alike.compare(rendering.format, train, None, lambda *_: None).near] == [
        ("train.jsonl:13", "train.jsonl:4")
    ]


@pytest.mark.parametrize("format", ["chat", "prompt_completion"])
@pytest.mark.parametrize("bos", [False, True])
def test_prompts_as_a_server_encodes_them_begin_the_rows(split, format, bos):
    rows = QUESTIONS if format == "chat" else [{"prompt": "two plus two is", "completion": " four"}]
    train, rendering = split(rows, format=format, bos=bos)
    found = asked.compare(rendering, train, lambda *_: None)
    assert (found.compared, found.differs) == (len(rows), ())
    of = f"{len(rows)} of {len(rows)} rows"
    assert found.facts() == [("prompts as generated", f"the beginning of the row as trained, in {of}")]


def test_a_tokenizer_that_ends_prompts_in_a_token_is_told(split):
    from tokenizers import processors

    train, rendering = split([{"prompt": "two plus", "completion": " four"}], format="prompt_completion")
    ends = ("</s>", rendering.tokenizer.convert_tokens_to_ids("</s>"))
    rendering.tokenizer._tokenizer.post_processor = processors.TemplateProcessing(
        "$A </s>", special_tokens=[ends]
    )
    found = asked.compare(rendering, train, lambda *_: None)
    ((row, trained, generated),) = found.differs
    assert row == "train.jsonl:1" and trained == "s f" and generated == "s</s>"
    assert "differ from training in 1 of 1 of 1 rows (train.jsonl:1: " in found.facts()[0][1]


def test_whole_texts_are_asked_with_nothing(split):
    train, rendering = split([{"text": "four five"}], format="text")
    assert asked.compare(rendering, train, lambda *_: None).facts() == []


def test_the_suggested_length_holds_all_rows_unless_a_few_are_very_long():
    assert Lengths.of([10, 70, 130]).suggested() == 192
    most = Lengths.of([100] * 995 + [3000] * 5)
    assert most.suggested() == 128
    assert most.facts()[2] == ("suggested train.max_length", "128; 5 rows of up to 3,000 tokens are longer")
    assert most.facts()[1] == ("held by train.max_length", "128: 99.5%, 3008: 100.0%")
    assert most.held(100) == 0.995 and most.held(99) == 0


def test_every_row_is_in_one_bin():
    lengths = Lengths.of([1, 64, 65, 128, 129, 1000])
    assert lengths.bins() == [(1, 64, 2), (65, 128, 2), (129, 256, 1), (257, 512, 0), (513, 1024, 1)]
    assert lengths.record()["suggested_max_length"] == 1024
    assert Lengths.of([]).facts() == [] and Lengths.of([]).suggested() == 64


def test_the_windows_of_a_document_do_not_repeat_one_another(byte_tokenizer, renderer):
    draw = random.Random(4)
    rows = [{"text": drawn(draw, 40)} for _ in range(3)]
    rendering = renderer(byte_tokenizer(), "text", max_length=60, too_long="windows")
    made = prepare(Rows(rows, "train.jsonl", "", lines=range(1, 4)), rendering)
    assert len(made.encoded) > 6
    found = alike.compare(rendering.format, Split(made.rows, made.encoded), None, lambda *_: None)
    assert found.near == ()
