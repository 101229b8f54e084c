"""Pairs of answers on their way from a row to a batch."""

from __future__ import annotations

import json
from itertools import chain

import pytest
import torch
from typer.testing import CliRunner

import make_preference_data
from lrft.commands.data import app
from lrft.data.collate import collate
from lrft.data.encoded import Encoded
from lrft.data.eval_batches import eval_batches
from lrft.data.example import Example
from lrft.data.prepare import prepare
from lrft.data.show import facts, masked_text
from lrft.data.sources import Rows
from lrft.data.steps import TrainData
from lrft.registry.axes import FORMATS
from lrft.registry.config import parse_choice
from lrft.registry.errors import DataError

ROW = {"prompt": "what is two plus two ?", "chosen": " four", "rejected": " five six"}
CHATML = (
    "{% for m in messages %}<|im_start|> {{ m.role }} \n {{ m.content }} <|im_end|> \n {% endfor %}"
    "{% if add_generation_prompt %}<|im_start|> assistant \n {% endif %}"
)


def example(row, **settings):
    config = parse_choice(FORMATS, {"method": "preference", **settings})
    return FORMATS.get("preference")(config).example(row)


def turn(role, content):
    return {"role": role, "content": content}


def pair(chosen, rejected, prompt=2, first=100):
    """Documents of the given lengths with a common prompt; everything after it is learnt."""
    ids = [*range(first, first + prompt)]
    a = [*ids, *range(first + 200, first + 200 + chosen - prompt)]
    b = [*ids, *range(first + 400, first + 400 + rejected - prompt)]
    mask = [k >= prompt for k in range(chosen)] + [k >= prompt for k in range(rejected)]
    return Encoded(a + b, mask, length=chosen + rejected, parts=(chosen, rejected))


def test_the_declared_trait_is_what_objectives_ask_for():
    assert FORMATS.declared("preference").provides == {"pairs"}
    assert all("pairs" not in FORMATS.declared(n).provides for n in FORMATS.names() if n != "preference")


def test_text_columns_become_two_answers_to_one_prompt():
    made = example(ROW, system="Count.")
    assert made.prompt == made.rejected.prompt == "Count.\n\nwhat is two plus two ?"
    assert (made.completion, made.rejected.completion) == (" four", " five six")
    renamed = example({"q": "a", "good": "b", "bad": "c"}, prompt="q", chosen="good", rejected="bad")
    assert renamed == Example(prompt="a", completion="b", rejected=Example(prompt="a", completion="c"))


ASKED = [turn("user", "Hi"), turn("assistant", "Yes?"), turn("user", "Why?")]
ANSWERS = {"chosen": [turn("assistant", "So.")], "rejected": [turn("assistant", "No.")]}
FORMS = {
    "apart": ({"prompt": ASKED, **ANSWERS}, ASKED),
    "whole": ({name: [*ASKED, *said] for name, said in ANSWERS.items()}, ASKED),
    "whole_beside_the_prompt": ({"prompt": "Why?", **{n: [*ASKED, *s] for n, s in ANSWERS.items()}}, ASKED),
    "text_prompt": ({"prompt": "Why?", **ANSWERS}, [turn("user", "Why?")]),
}


@pytest.mark.parametrize("form", FORMS)
def test_conversations_may_hold_the_prompt_or_go_on_from_it(form):
    row, asked = FORMS[form]
    made = example(row, system="S")
    system = turn("system", "S")
    assert made.messages == (system, *asked, turn("assistant", "So."))
    assert made.rejected.messages == (system, *asked, turn("assistant", "No."))
    assert made.learn == made.rejected.learn == "last"


REFUSED = {
    "no_prompt": ({"chosen": "a", "rejected": "b"}, "needs column 'prompt'"),
    "no_rejected": ({"prompt": "a", "chosen": "b"}, "needs column 'rejected'"),
    "null": ({"prompt": "a", "chosen": None, "rejected": "b"}, "column 'chosen' is null"),
    "mixed": ({"prompt": "a", "chosen": "b", "rejected": ANSWERS["rejected"]}, "write both the same way"),
    "other_prompts": (
        {
            "chosen": [turn("user", "x"), *ANSWERS["chosen"]],
            "rejected": [turn("user", "y"), *ANSWERS["rejected"]],
        },
        "differ before their last message",
    ),
    "no_answer": (
        {"chosen": [turn("user", "x")], "rejected": [turn("user", "x")]},
        "ends in a message of role user",
    ),
    "empty": ({"prompt": "a", "chosen": [], "rejected": []}, "column 'chosen' must be a list of messages"),
    "broken_turn": ({"prompt": "a", "chosen": [7], "rejected": [7]}, "column 'chosen': message 1 needs role"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_row_that_is_no_pair_says_what_would_be(case):
    row, part = REFUSED[case]
    with pytest.raises(DataError) as raised:
        example(row)
    assert part in str(raised.value) and "\n" not in str(raised.value)


def test_another_format_on_such_rows_points_here():
    plain = FORMATS.get("prompt_completion")(parse_choice(FORMATS, "prompt_completion"))
    with pytest.raises(DataError, match=r"data\.format: preference would fit"):
        plain.example(ROW)


def test_a_row_is_two_documents_and_only_answers_are_learnt(word_tokenizer, renderer, shown):
    tokenizer = word_tokenizer(bos=True)
    encoded = renderer(tokenizer, "preference").encode(ROW)
    chosen, rejected = encoded.documents()
    assert shown(chosen, tokenizer) == "<s> what is two plus two ? (four) (</s>)"
    assert shown(rejected, tokenizer) == "<s> what is two plus two ? (five) (six) (</s>)"
    assert encoded.parts == (9, 10) and encoded.length == len(encoded.input_ids) == 19
    assert chosen.input_ids + rejected.input_ids == encoded.input_ids
    assert encoded.extra_bos == 0 and encoded.targets == 5


def test_each_answer_is_encoded_as_it_would_be_alone(word_tokenizer, renderer):
    tokenizer = word_tokenizer(CHATML, eos="<|im_end|>")
    row = {"prompt": ASKED[2:], "chosen": [turn("assistant", "four")], "rejected": [turn("assistant", "six")]}
    documents = renderer(tokenizer, "preference").encode(row).documents()
    chat = renderer(tokenizer, "chat")
    for document, answer in zip(documents, ("four", "six"), strict=True):
        assert document == chat.encode({"messages": [*ASKED[2:], turn("assistant", answer)]})


def test_generation_starts_from_the_prompt_and_is_held_against_the_chosen_answer(word_tokenizer, renderer):
    made = renderer(word_tokenizer(bos=True), "preference")
    assert made.prompt_ids(ROW) == made.encode(ROW).input_ids[:7]
    assert made.reference(ROW) == " four"


@pytest.mark.parametrize(
    ("too_long", "max_length", "expected"),
    [
        (
            "error",
            15,
            ("<s> what is two plus two ? (four) (</s>)", "<s> what is two plus two ? (five) (six) (</s>)"),
        ),
        ("drop", 18, None),
        (
            "drop",
            19,
            ("<s> what is two plus two ? (four) (</s>)", "<s> what is two plus two ? (five) (six) (</s>)"),
        ),
        (
            "truncate_right",
            18,
            ("<s> what is two plus two ? (four) (</s>)", "<s> what is two plus two ? (five) (six)"),
        ),
        (
            "truncate_right",
            17,
            ("<s> what is two plus two ? (four)", "<s> what is two plus two ? (five) (six)"),
        ),
        # Half of 15 holds no answer token of the chosen one: then nothing of the pair is learnt.
        ("truncate_right", 15, ("<s> what is two plus two ?", "<s> what is two plus two ? five")),
        (
            "truncate_left",
            18,
            ("<s> is two plus two ? (four) (</s>)", "<s> is two plus two ? (five) (six) (</s>)"),
        ),
        ("truncate_left", 7, ("<s> (four) (</s>)", "<s> (five) (six) (</s>)")),
        ("truncate_left", 6, None),
    ],
)
def test_pairs_over_the_limit_are_cut_alike_or_not_used(
    too_long, max_length, expected, word_tokenizer, renderer, shown
):
    tokenizer = word_tokenizer(bos=True)
    encoded = renderer(tokenizer, "preference", max_length, too_long).encode(ROW)
    if expected is None:
        assert encoded.dropped and not encoded.input_ids and not encoded.truncated
    else:
        assert tuple(shown(d, tokenizer) for d in encoded.documents()) == expected
        assert too_long == "error" or len(encoded.input_ids) <= max_length
        assert encoded.truncated == (len(encoded.input_ids) < 19)
    assert encoded.length == 19


def test_a_cut_from_the_left_without_a_bos_keeps_a_token_to_predict_from(word_tokenizer, renderer, shown):
    tokenizer = word_tokenizer()
    cut = renderer(tokenizer, "preference", 8, "truncate_left").encode(ROW)
    assert [shown(d, tokenizer) for d in cut.documents()] == ["? (four) (</s>)", "? (five) (six) (</s>)"]
    assert renderer(tokenizer, "preference", 6, "truncate_left").encode(ROW).dropped


def test_a_batch_of_pairs_worked_by_hand():
    a, b = pair(3, 4), pair(4, 3, prompt=3, first=10)
    batch = collate([[a, b]], 0, 16, [[5, 2]])
    assert batch.documents == ((0, 0, 3), (0, 3, 7), (0, 7, 11), (0, 11, 14)) and batch.examples == (5, 2)
    assert batch.input_ids.tolist() == [
        [100, 101, 300, 100, 101, 500, 501, 10, 11, 12, 210, 10, 11, 12, 0, 0]
    ]
    assert batch.position_ids.tolist() == [[0, 1, 2, 0, 1, 2, 3, 0, 1, 2, 3, 0, 1, 2, 0, 1]]
    assert batch.supervised.tolist() == [1, 4, 5, 9] and batch.targets.tolist() == [300, 500, 501, 210]


@pytest.mark.parametrize("packing", [True, False])
def test_a_pair_is_never_split_over_rows_or_micro_batches(packing):
    rows = [pair(3 + k % 4, 3 + k % 5, first=1000 * k) for k in range(23)]
    settings = {"batch_size": 2, "accumulation": 2, "max_length": 24, "seed": 5, "pad_id": 0}
    data = TrainData(rows, packing=packing, **settings)
    seen = []
    for step in range(data.steps_per_epoch(0)):
        batches = data.at(step)
        assert batches.examples == sum(len(batch.examples) for batch in batches.micro_batches)
        for batch in batches.micro_batches:
            assert len(batch.documents) == 2 * len(batch.examples)
            seen += batch.examples
            for number, example in enumerate(batch.examples):
                (row, start, middle), (same, next_start, end) = batch.documents[2 * number : 2 * number + 2]
                assert row == same and middle == next_start
                assert batch.input_ids[row, start:end].tolist() == rows[example].input_ids
    assert sorted(seen) == list(range(23))


def test_a_step_counts_its_pairs_over_all_processes():
    rows = [pair(4, 5, first=1000 * k) for k in range(12)]
    settings = {"batch_size": 1, "accumulation": 2, "max_length": 20, "packing": True, "seed": 5, "pad_id": 0}
    for rank in range(2):
        step = TrainData(rows, world=2, rank=rank, **settings).at(0)
        assert step.examples == 8 and step.tokens == 72
        assert sum(len(batch.examples) for batch in step.micro_batches) == 4


def test_a_pair_longer_than_a_row_is_refused():
    with pytest.raises(DataError, match=r"a row has 13 tokens, more than 12"):
        TrainData([pair(6, 7)], batch_size=1, accumulation=1, max_length=12, packing=True, seed=0, pad_id=0)


def test_held_out_scores_are_of_the_chosen_answers():
    rows = [pair(3, 9), pair(5, 4, first=10)]
    (batch,) = eval_batches(rows, 100, 0)
    alone = [row.documents()[0] for row in rows]
    (expected,) = eval_batches(alone, 100, 0)
    assert batch.documents == expected.documents == ((0, 0, 5), (1, 0, 3))
    assert torch.equal(batch.input_ids, expected.input_ids) and torch.equal(batch.targets, expected.targets)
    assert batch.examples == (1, 0)


@pytest.fixture
def report(word_tokenizer, renderer):
    def make(rows, max_length=100, too_long="error", **settings):
        rows = Rows(rows, "rows.jsonl", "", lines=range(1, len(rows) + 1))
        made = renderer(word_tokenizer(bos=True), {"method": "preference", **settings}, max_length, too_long)
        return prepare(rows, made).report

    return make


def test_the_gate_passes_pairs_and_counts_them(report):
    found = report([ROW, {**ROW, "chosen": " six"}])
    assert (found.rows, found.pairs, found.tokens, found.supervised) == (2, 2, 38, 10)
    found.check(False, "error")
    assert ("pairs", "2") in facts(found)


def test_the_gate_says_what_the_length_of_a_pair_is(report):
    with pytest.raises(DataError) as raised:
        report([ROW], max_length=18).check(False, "error")
    assert "longer than train.max_length 18, a pair being both answers, each with its prompt" in str(
        raised.value
    )
    assert "train.max_length: 64" in str(raised.value)


def test_what_ails_one_answer_ails_the_pair(report):
    found = report([{**ROW, "rejected": ""}, {**ROW, "rejected": " four"}, ROW, ROW])
    assert (found.empty_answers, found.equal_answers, found.duplicates) == (1, 1, 1)
    assert found.first["equal_answers"] == ("rows.jsonl:2",)
    assert ("both answers equal", "1 (first: rows.jsonl:2)") in facts(found)
    doubled = report([ROW, {**ROW, "prompt": "<s> <s> what"}])
    assert doubled.wrong_bos == 1
    cut = report([ROW], max_length=17, too_long="truncate_right")
    assert (cut.truncated, cut.stops_cut) == (1, 1)
    nothing = report([ROW], max_length=15, too_long="truncate_right")
    assert nothing.without_target == 1


def test_both_answers_are_shown(word_tokenizer, renderer):
    tokenizer = word_tokenizer()
    text = masked_text(renderer(tokenizer, "preference").encode(ROW), tokenizer, colour=False).plain
    first, second = text.splitlines()
    assert first.startswith("chosen: what") and second.startswith("rejected: what")
    assert text.count("⟦") == 2 and "five" not in first and "four" not in second


def test_the_command_shows_and_checks_pairs(tiny, tmp_path):
    rows = make_preference_data.FOLDER / "train.jsonl"
    file = tmp_path / "recipe.yaml"
    file.write_text(
        f"model: {{name: {tiny()}, dtype: float32}}\n"
        f"data: {{train: {rows}, format: {{method: preference, render: chat}}}}\n"
        "objective: dpo\ntrain: {max_length: 384}\n"
    )
    shown = CliRunner().invoke(app, ["show", str(file), "--rows", "1"], catch_exceptions=False)
    assert shown.exit_code == 0 and shown.output.count("⟦") == 2 and "rejected: " in shown.output
    checked = CliRunner().invoke(app, ["check", str(file)], catch_exceptions=False)
    assert (
        checked.exit_code == 0
        and "pairs: 96\n" in checked.output
        and "both answers equal" not in checked.output
    )


def test_the_preference_data_are_what_their_script_makes(tmp_path):
    make_preference_data.write(tmp_path)
    for name in ("train.jsonl", "test.jsonl"):
        assert (tmp_path / name).read_bytes() == (make_preference_data.FOLDER / name).read_bytes()


def test_a_rejected_record_has_one_wrong_value():
    for row in chain(*make_preference_data.make()):
        chosen, rejected = json.loads(row["chosen"]), json.loads(row["rejected"])
        assert sum(chosen[key] != rejected[key] for key in chosen) == 1 and chosen.keys() == rejected.keys()
