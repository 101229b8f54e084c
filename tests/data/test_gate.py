from __future__ import annotations

import json

import pytest

from lrft.data.gate import inspect
from lrft.data.prepare import prepare
from lrft.data.show import facts, masked_text, spans
from lrft.data.sources import Rows
from lrft.data.tokenize import encode_all
from lrft.registry.errors import DataError

NO_STOP = "{% for m in messages %}{{ m.role }} \n {{ m.content }} \n {% endfor %}"
PROMPT = "{% if add_generation_prompt %}assistant \n {% endif %}"
QUESTIONS = [
    {"prompt": "what is two", "completion": " four"},
    {"prompt": "and now ?", "completion": " five six"},
]
TALK = [{"messages": [{"role": "user", "content": "what"}, {"role": "assistant", "content": "four"}]}]


@pytest.fixture
def report(word_tokenizer, renderer):
    def make(rows, format="prompt_completion", max_length=100, too_long="error", template=None, **kind):
        rows = Rows(rows, "rows.jsonl", "", lines=range(1, len(rows) + 1))
        return prepare(rows, renderer(word_tokenizer(template, **kind), format, max_length, too_long)).report

    return make


def test_good_rows_pass_and_are_counted(report):
    found = report(QUESTIONS, bos=True)
    assert (found.rows, found.tokens, found.supervised) == (2, 6 + 7, 2 + 3)
    assert found.supervised_share == 5 / 13
    assert (found.length_p50, found.length_p95, found.length_max, found.suggested_max_length) == (7, 7, 7, 64)
    found.check(False, "error")
    assert json.loads(json.dumps(found.record()))["supervised_share"] == 5 / 13


def test_an_answer_that_goes_on_after_a_stop_token_is_told(report):
    cut = {"prompt": "what is two", "completion": " four </s> five"}
    found = report([*QUESTIONS, cut])
    found.check(False, "error")
    assert found.stops_within == 1 and found.first["stops_within"] == ("rows.jsonl:3",)
    assert ("answer goes on after a stop token", "1 (first: rows.jsonl:3)") in facts(found)
    assert report([{"text": "four </s> five six"}], "text").stops_within == 0


def test_raw_text_passes_because_a_stop_token_is_appended(report):
    report([{"text": "four five six"}], "text").check(False, "error")


def test_rows_over_the_limit_stop_with_the_numbers_and_a_length_that_would_do(report):
    found = report(QUESTIONS, max_length=5)
    with pytest.raises(DataError) as raised:
        found.check(False, "error")
    message = str(raised.value)
    assert raised.value.exit_code == 3
    assert "1 of 2 rows are longer than train.max_length 5" in message and "longest 6 tokens" in message
    assert "first: rows.jsonl:2" in message and "train.max_length: 64" in message


@pytest.mark.parametrize(
    ("too_long", "counts"), [("drop", (0, 1, 0)), ("truncate_left", (1, 0, 0)), ("truncate_right", (1, 0, 1))]
)
def test_rows_that_were_cut_or_dropped_pass_and_are_counted(report, too_long, counts):
    found = report(QUESTIONS, max_length=5, too_long=too_long)
    assert (found.truncated, found.dropped, found.stops_cut) == counts
    assert found.too_long == 1 and found.without_stop == 0
    found.check(False, too_long)


def test_rows_without_a_target_stop_unless_the_recipe_allows_them(report):
    rows = [*TALK, {"messages": [{"role": "user", "content": "what"}]}]
    template = NO_STOP.replace(" \n {% endfor", " </s> \n {% endfor") + PROMPT
    found = report(rows, "chat", template=template)
    assert found.without_target == 1
    with pytest.raises(
        DataError, match=r"1 of 2 rows have no token to learn \(first: rows\.jsonl:2\).*allow_empty_targets"
    ):
        found.check(False, "error")
    found.check(True, "error")


def test_a_data_set_without_any_target_stops_even_where_empty_rows_are_allowed(report):
    found = report(QUESTIONS, max_length=3, too_long="drop")
    with pytest.raises(DataError, match="none of 2 rows has a token to learn"):
        found.check(True, "drop")
    all_masked = report(QUESTIONS, max_length=3, too_long="truncate_right")
    assert all_masked.without_target == 2
    with pytest.raises(DataError, match="2 of 2 rows have no token to learn"):
        all_masked.check(False, "truncate_right")


def test_answers_that_no_stop_token_ends_are_refused(report):
    template = NO_STOP + PROMPT
    found = report(TALK, "chat", template=template)
    assert found.without_stop == 1
    with pytest.raises(DataError, match=r"1 of 1 rows do not end in a stop token.*stop tokens are </s>"):
        found.check(False, "error")


def test_a_doubled_bos_is_refused(report):
    found = report([{"text": "<s> <s> four"}, {"text": "<s> five"}], "text", bos=True)
    assert found.wrong_bos == 1
    with pytest.raises(DataError, match=r"1 of 2 rows have a wrong number of beginning-of-text tokens"):
        found.check(False, "error")


def test_every_problem_is_reported_at_once(report):
    found = report([{"text": "<s> <s> four five"}, {"text": "<s> five"}], "text", max_length=4, bos=True)
    with pytest.raises(DataError) as raised:
        found.check(False, "error")
    assert len(str(raised.value).splitlines()) == 2


def test_duplicates_and_empty_answers_are_counted_and_pass(report):
    found = report([QUESTIONS[0], {"prompt": "two", "completion": ""}, QUESTIONS[0]])
    assert (found.duplicates, found.empty_answers) == (1, 1)
    assert found.first["duplicates"] == ("rows.jsonl:3",) and found.first["empty_answers"] == (
        "rows.jsonl:2",
    )
    found.check(False, "error")


def test_answers_encoded_apart_from_their_prompts_are_counted_and_pass(byte_tokenizer, renderer):
    rows = Rows([{"prompt": "Answer: ", "completion": "72"}], "rows.jsonl", "", lines=[1])
    found = prepare(rows, renderer(byte_tokenizer(), "prompt_completion")).report
    assert (found.apart, found.merged) == (1, 0)
    assert ("answer encoded apart from its prompt", "1 (first: rows.jsonl:1)") in facts(found)
    found.check(False, "error")


def test_a_token_over_the_seam_is_told_and_stops_where_it_takes_the_whole_answer(report):
    some = report([{"prompt": "what is fo", "completion": "ur five"}])
    assert (some.merged, some.lost) == (1, 0)
    assert ("prompt and answer share a token", "1 (first: rows.jsonl:1)") in facts(some)
    some.check(False, "error")
    all_of_it = report([{"prompt": "what is fo", "completion": "ur"}, *QUESTIONS])
    assert (all_of_it.merged, all_of_it.lost) == (1, 1)
    with pytest.raises(
        DataError, match=r"in 1 of 3 rows the whole answer is one token .*first: rows\.jsonl:1"
    ):
        all_of_it.check(False, "error")


def test_the_report_counts_what_it_is_given(document, word_tokenizer):
    rows = Rows([{}] * 100, "here", "")
    found = inspect([document(n + 2, 1) for n in range(100)], rows, word_tokenizer(), {0}, 1000)
    assert (found.length_p50, found.length_p95, found.length_max) == (52, 97, 101)
    assert found.without_stop == 100 and found.first["without_stop"] == (
        "here row 0",
        "here row 1",
        "here row 2",
    )


def test_what_is_learnt_is_marked(word_tokenizer, byte_tokenizer, renderer):
    tokenizer = byte_tokenizer(bos=True)
    rows = Rows([{"prompt": "Question: how many?\nAnswer:", "completion": " 72 [clips]"}], "r", "")
    (encoded,) = encode_all(rows, renderer(tokenizer, "prompt_completion"))
    assert spans(encoded, tokenizer) == [
        ("<s>Question: how many?\nAnswer:", False),
        (" 72 [clips]</s>", True),
    ]
    plain = masked_text(encoded, tokenizer, colour=False)
    assert plain.plain == "<s>Question: how many?\nAnswer:⟦ 72 [clips]</s>⟧" and not plain.spans
    coloured = masked_text(encoded, tokenizer, colour=True)
    assert coloured.plain == "<s>Question: how many?\nAnswer: 72 [clips]</s>" and len(coloured.spans) == 2
