"""What an answer is worth, on answers that are known."""

from __future__ import annotations

import math
from importlib.metadata import EntryPoint

import pytest

from lrft.core.reward import Attempt
from lrft.methods.rewards import entry_point
from lrft.registry.axes import REWARDS
from lrft.registry.errors import DataError, RecipeError
from tests.each import each


def reward(name, **settings):
    return REWARDS.get(name)(REWARDS.settings(name, **settings))


def attempt(output="", reference="", written=None, tokens=5, stopped=True, limit=100):
    return Attempt(
        output, output if written is None else written, reference, tokens, stopped, limit, {"n": 1}
    )


@each(
    ("name", "settings", "output", "reference", "worth"),
    [
        ("exact_match", {}, " yes \n", "yes", 1),
        ("exact_match", {}, "Yes", "yes", 0),
        ("exact_match", {"compare": "json"}, '{"b": 2, "a": 1}', '{"a":1,"b":2}', 1),
        ("exact_match", {"compare": "json"}, '{"a": 1.0, "b": 2}', '{"a":1,"b":2}', 0),
        ("exact_match", {"compare": "json"}, "{", '{"a":1}', 0),
        ("numeric", {}, "2 + 3 = 5, so it is $1,005.0", "by counting: 7\n#### 1005", 1),
        ("numeric", {}, "1005 and then 6", "#### 1005", 0),
        ("numeric", {}, "none", "3 apples", 0),
        ("numeric", {}, "it is 3", "there are 3 apples", 1),
        ("numeric", {}, "it is 2", "2 #### 3 of 2", 0),
        ("format", {}, ' [1, {"a": null}]\n', "", 1),
        ("format", {}, "[1] and more", "", 0),
        ("format", {"pattern": "<think>.*</think>.*"}, "<think>one\ntwo</think> three", "", 1),
        ("format", {"pattern": "<think>.*</think>"}, "<think>one</think> three", "", 0),
    ],
)
def test_an_answer_is_worth_one_or_nothing(name, settings, output, reference, worth):
    assert reward(name, **settings)(attempt(output, reference)) == worth


def test_form_is_of_all_that_was_written_and_the_match_of_what_follows_thoughts():
    one = attempt("7", "7", written="<think>six?</think>7")
    assert reward("format", pattern="<think>.*</think>.")(one) == 1
    assert reward("exact_match")(one) == 1


def test_length_falls_from_nothing_to_minus_one_within_the_margin():
    """DAPO's equation 13 at its own numbers: 20480 tokens, of which the last 4096 cost."""
    of = {4: 0.0, 16384: 0.0, 18432: -0.5, 20480: -1.0}
    assert {n: reward("length")(attempt(tokens=n, limit=20480)) for n in of} == of
    assert reward("length", margin=50)(attempt(tokens=75, limit=100)) == -0.5
    assert reward("length")(attempt(tokens=3, limit=3)) == -1


def test_rows_that_no_answer_could_match_are_refused_before_anything_is_drawn():
    with pytest.raises(DataError, match="not JSON"):
        reward("exact_match", compare="json").check("yes", 10)
    with pytest.raises(DataError, match="no number to arrive at"):
        reward("numeric").check("7 ####", 10)
    with pytest.raises(RecipeError, match="more than an answer's 10"):
        reward("length", margin=11).check("", 10)
    with pytest.raises(ValueError, match="is no regular expression"):
        reward("format", pattern="(")
    reward("exact_match").check("", 10)


def by_words(one):
    return len(one.output.split()) + one.row["n"] if one.stopped else "nothing"


def installed(monkeypatch, *names, value=f"{__name__}:by_words"):
    found = [EntryPoint(name, value, entry_point.GROUP) for name in names]
    monkeypatch.setattr(entry_point, "entry_points", lambda group: found if group == "lrft.rewards" else [])


def test_a_function_of_another_package_gives_its_number(monkeypatch):
    installed(monkeypatch, "words", "others")
    mine = reward("entry_point", function="words")
    mine.check("", 10)
    assert mine(attempt("three short words")) == 4.0
    with pytest.raises(DataError, match="words gave 'nothing' for an answer; return a finite number"):
        mine(attempt("", stopped=False))


def test_a_function_that_is_not_to_be_had_is_said_before_anything_is_drawn(monkeypatch):
    with pytest.raises(RecipeError, match=r"no installed package has 'mine' .* there is none"):
        reward("entry_point", function="mine").check("", 10)
    installed(monkeypatch, "words", "mine", "mine")
    with pytest.raises(RecipeError, match="there is mine and words"):
        reward("entry_point", function="other").check("", 10)
    with pytest.raises(RecipeError, match="several packages have 'mine'"):
        reward("entry_point", function="mine").check("", 10)
    installed(monkeypatch, "gone", value="nowhere_to_be_found:f")
    with pytest.raises(RecipeError, match=r"cannot be loaded .*; mend it"):
        reward("entry_point", function="gone").check("", 10)
    installed(monkeypatch, "constant", value=f"{__name__}:__name__")
    with pytest.raises(RecipeError, match="is no function"):
        reward("entry_point", function="constant").check("", 10)


@each(
    ("discount", "whole", "by_rank"),
    [
        ("none", 2.0, [1.0, 0.0, 0.0, 1.0]),
        # 1/log2(2) at rank 1 and 1/log2(5) at rank 4; a rank is given what it and those after it gain
        ("log", 1 + 1 / math.log2(5), [1 + 1 / math.log2(5), *3 * [1 / math.log2(5)]]),
    ],
)
def test_of_a_list_each_item_counts_once_and_further_down_less(discount, whole, by_rank):
    answer = "The  Matrix\nAlien\nthe matrix\nHeat"
    one = attempt(answer, "heat\nthe matrix\n")
    made = reward("listed", discount=discount)
    assert made(one) == pytest.approx(whole)
    assert made.by_rank(one, answer.split("\n")) == pytest.approx(by_rank)


def test_a_reward_of_a_rank_is_that_of_an_answer_that_is_the_item_alone():
    assert reward("format", pattern="[a-z]+").by_rank(attempt("a\n1\nb"), ["a", "1", "b"]) == [1, 0, 1]


def test_a_list_to_compare_with_holds_something():
    with pytest.raises(DataError, match="holds no line"):
        reward("listed").check(" \n ", 5)


@each(
    "pattern",
    [
        *("(a+)+", "(a|a)*b", "(a*)*b", "(?:a?){30}a{30}", "a?" * 40 + "a" * 40, "(a|a)" * 40 + "c"),
        *(".*a.*b.*c", r"(.*,)*x", r"(\w+\s?)*!", r"\w+?\wb*[ab]+?x", "(?:" * 150 + ".*" + ")*" * 150),
        "\U0001f600*\U0001f600*\U0001f600*!",
    ],
)
def test_a_pattern_that_may_not_end_is_refused(pattern):
    with pytest.raises(ValueError, match="could take very long to match a long text"):
        reward("format", pattern=pattern)


@each(
    "pattern",
    [
        r"<think>.*?</think>\s*<answer>.*?</answer>\s*",
        r"^<think>(?:(?!</think>).)*</think>\s*<answer>[\s\S]*?</answer>\s*$",
        r"(?:Step \d+: [^\n]*\n)+Answer: .*",
        r"(?i)(yes|no|maybe)\.?",
        r"\d+(?:,\d{3})*(?:\.\d+)?",
        r".*\\boxed\{[^{}]*\}.*",
        r"(?=.*a)(?=.*b).{3,}",
        r"<(\w+)>.*</\1>",
        "(?:[a-z]+ )*[a-z]+",
    ],
)
def test_a_pattern_that_ends_is_taken_and_does(pattern):
    form = reward("format", pattern=pattern)
    for text in ("<think></think>" * 600, "a" * 9000, "Step 1: a\n" * 900 + "x", "yes", "1,000" * 900):
        assert form(attempt(text)) in (0, 1)
