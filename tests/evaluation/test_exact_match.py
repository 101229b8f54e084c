"""Exact match, as text and as JSON."""

from __future__ import annotations

import math
import statistics

import pytest

from lrft.core.written import same_json, same_text
from lrft.evaluation.tasks._task import share
from lrft.registry.axes import TASKS
from lrft.registry.config import parse_choice
from lrft.registry.errors import DataError, RecipeError


def test_text_ignores_white_space_at_both_ends_only():
    assert same_text(" a b\n", "a b")
    assert not same_text("a  b", "a b")
    assert not same_text("A b", "a b")


@pytest.mark.parametrize(
    ("output", "equal"),
    [
        ('{"b": [1, 2.5, null], "a": "x"}', True),
        ('\n {"a":"x","b":[1,2.5,null]} ', True),
        ('{"a": "x", "b": [1, 2.5]}', False),
        ('{"a": "x", "b": [2.5, 1, null]}', False),
        ('{"a": "x", "b": [true, 2.5, null]}', False),
        ('{"a": "x", "b": [1.0, 2.5, null]}', False),
        ('{"a": "x", "b": ["1", 2.5, null]}', False),
        ('{"a": "x", "b": [1, 2.5, null], "c": 0}', False),
        ('{"a": "x", "b": [1, 2.5, null]', False),
        ('{"a": "x", "b": [1, 2.5, null]} and more', False),
        ("[" * 100_000, False),
        ("", False),
    ],
)
def test_json_compares_values_and_their_types(output, equal):
    assert same_json(output, '{"a": "x", "b": [1, 2.5, null]}') is equal


ROWS = [{"prompt": f"p{i}", "completion": f'{{"k": {i}, "l": 1}}'} for i in range(3)]
OUTPUTS = ['{"k": 0, "l": 1}', '{"l": 1, "k": 1}', "{"]


@pytest.mark.parametrize(("compare", "exact"), [("text", 1 / 3), ("json", 2 / 3)])
def test_the_share_of_equal_and_of_stopped_outputs(make_subject, say, compare, exact):
    subject = make_subject(rows=ROWS)
    say(subject, OUTPUTS, unstopped=(2,))
    config = parse_choice(TASKS, {"method": "exact_match", "compare": compare})
    found = TASKS.get("exact_match")(config).run(subject, None)
    assert found.metrics["exact_match"] == pytest.approx(exact)
    assert found.metrics["stopped"] == pytest.approx(2 / 3)
    assert found.settings["compare"] == compare


def test_a_reference_that_is_no_json_is_refused_by_line(make_subject, say):
    subject = make_subject(rows=[*ROWS, {"prompt": "p", "completion": "text"}])
    say(subject, OUTPUTS)
    config = parse_choice(TASKS, {"method": "exact_match", "compare": "json"})
    with pytest.raises(DataError, match=r"^made\.jsonl:4: the reference is not JSON"):
        TASKS.get("exact_match")(config).run(subject, None)


def test_without_held_out_rows_the_error_names_the_key(make_subject):
    with pytest.raises(RecipeError, match=r"^data\.eval: no held-out rows for exact_match"):
        TASKS.get("exact_match")(parse_choice(TASKS, "exact_match")).run(make_subject(), None)


@pytest.mark.parametrize("values", [[True, False], [True] * 9 + [False] * 4, [False] * 5])
def test_the_standard_error_is_the_sample_deviation_over_root_n(values):
    found = share("acc", values)
    assert found["acc"] == pytest.approx(statistics.mean(values))
    wanted = statistics.stdev(map(float, values)) / len(values) ** 0.5
    assert found["acc_stderr"] == pytest.approx(wanted, abs=1e-12)


def test_one_row_has_no_standard_error():
    assert math.isnan(share("acc", [True])["acc_stderr"])
