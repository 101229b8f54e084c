"""GSM8K's rule, as a table, and its score on outputs written by hand."""

from __future__ import annotations

from decimal import Decimal

import pytest

from lrft.evaluation.tasks.gsm8k import gold_number, last_number, marked_number
from lrft.registry.axes import TASKS
from lrft.registry.config import parse_choice
from lrft.registry.errors import DataError

LAST = [
    ("18", "18"),
    ("She pays $18.", "18"),
    ("#### 18", "18"),
    ("It is 1,234.50 in all", "1234.50"),
    ("12,345,678 people", "12345678"),
    ("first 3, then 4", "4"),
    ("3,4", "4"),
    ("1,0000", "0"),
    ("10-3", "3"),
    ("10 - 3 = 7", "7"),
    ("the balance is -5", "-5"),
    ("(-2)", "-2"),
    ("-$5", "-5"),
    ("$-5", "-5"),
    ("minus sign \u22127", "-7"),
    ("x=-.5", "-0.5"),
    ("costs $.50", "0.50"),
    ("2.5%", "2.5"),
    ("is 42...", "42"),
    ("The answer is 42.\n", "42"),
    ("**72**", "72"),
    ("answer: 7 apples and 8", "8"),
    ("step 1.2.3", "3"),
    ("<<48/2=24>>24 clips", "24"),
    ("$1,000.", "1000"),
    ("page9", "9"),
    ("4 (four)-2", "2"),
    ("no number", None),
    ("", None),
]


@pytest.mark.parametrize(("text", "number"), LAST)
def test_the_last_number_of_a_text(text, number):
    assert last_number(text) == (None if number is None else Decimal(number))


def test_numbers_compare_by_value():
    assert last_number("18") == last_number("$18.00") == last_number("018") == gold_number("so\n#### 18")
    assert last_number("0.1") != gold_number("#### 0.10000000000000000001")


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("so #### 18", "18"),
        ("####  $1,200.", "1200"),
        ("####-3", "-3"),
        ("#### $-3", "-3"),
        ("#### 1 #### 2", "1"),
    ],
)
def test_the_marked_number_follows_the_first_marker(text, number):
    assert marked_number(text) == Decimal(number)


@pytest.mark.parametrize("text", ["18", "### 18", "#### about 18", "####\n18", ""])
def test_without_a_number_right_after_the_marker_there_is_no_marked_number(text):
    assert marked_number(text) is None


def test_the_gold_is_the_number_after_the_last_marker():
    assert gold_number("A #### is written.\n5+5=10\n#### 10 apples, 3 pears") == 10
    for reference in ("10", "10 ####", "#### ten"):
        with pytest.raises(DataError, match="no number after `####`"):
            gold_number(reference)


ROWS = [{"prompt": f"Question {i}?", "completion": f"1+1=2\n#### {2 + i}"} for i in range(4)]
OUTPUTS = ["#### 2", "so it is 3 eggs", "#### 4 or 5", "nothing"]


def score(make_subject, say, config="gsm8k", **changes):
    subject = make_subject(rows=changes.pop("rows", ROWS))
    say(subject, OUTPUTS, unstopped=(3,))
    return TASKS.get("gsm8k")(parse_choice(TASKS, config)).run(subject, **{"limit": None, **changes})


def test_both_rules_and_unstopped_outputs_are_counted(make_subject, say):
    found = score(make_subject, say)
    assert found.metrics["exact_match"] == 0.5
    assert found.metrics["exact_match_strict"] == 0.5
    assert found.metrics["unstopped"] == 0.25
    assert [sample["correct"] for sample in found.samples] == [True, True, False, False]
    assert [sample["extracted"] for sample in found.samples] == ["2", "3", "5", None]
    assert found.samples[1]["output"] == "so it is 3 eggs"
    assert found.samples[1]["prompt"].endswith("Question 1?")
    assert (found.n, found.version) == (4, "gsm8k-last-number-1")
    assert found.settings["max_new_tokens"] == 256


def test_the_limit_scores_the_first_rows(make_subject, say):
    found = score(make_subject, say, limit=2)
    assert (found.n, found.metrics["exact_match"]) == (2, 1.0)


def test_a_reference_without_a_number_is_refused_by_line_before_generating(make_subject, say):
    with pytest.raises(DataError, match=r"^made\.jsonl:2: the reference has no number"):
        score(make_subject, say, rows=[*ROWS[:1], {"prompt": "a", "completion": "b"}])


def test_a_task_may_read_its_own_rows_in_its_own_format(make_subject, say, tmp_path):
    file = tmp_path / "own.jsonl"
    file.write_text('{"question": "q", "answer": "#### 2"}\n')
    columns = {"method": "columns", "prompt": "Q: {question}", "completion": "{answer}"}
    found = score(
        make_subject, say, {"method": "gsm8k", "data": str(file), "format": columns, "max_new_tokens": 9}
    )
    assert (found.n, found.metrics["exact_match"]) == (1, 1.0)
    assert found.samples[0]["prompt"].endswith("Q: q")
    assert found.settings["rows"] == str(file)
