r"""Boxed answers: where they stand, which of them are the same, and the score of outputs written by hand."""

from __future__ import annotations

import sys
from types import ModuleType

import pytest

from lrft.evaluation.tasks._boxed import last_boxed, normalised
from lrft.evaluation.tasks.math import same_text, same_value
from lrft.registry.axes import TASKS
from lrft.registry.config import parse_choice
from lrft.registry.errors import DataError, MissingExtra

BOXES = [
    (r"so \boxed{4}.", "4"),
    (r"\boxed{1} then $\boxed{\frac{1}{2}}$", r"\frac{1}{2}"),
    (r"\fbox{7}", "7"),
    (r"\boxed{\sqrt{2}+\{1\}}", r"\sqrt{2}+\{1\}"),
    (r"\boxed{3} and \boxed{unfinished", "3"),
    (r"\boxed 5$.", "5"),
    (r"\boxed{}", ""),
    ("no box, 4", None),
    (r"\boxed{unfinished", None),
]
SAME = [
    ("4", " 4."),
    (r"\dfrac{1}{2}", r"\frac12"),
    ("1/2", r"\tfrac{1}{2}"),
    ("0.5", r"\frac{1}{2}"),
    (".5", "1/2"),
    ("-3/4", r"-\frac{3}{4}"),
    (r"\frac1{72}", r"\frac{1}{72}"),
    (r"\frac{10}9", r"\frac{10}{9}"),
    (r"\sqrt2", r"\sqrt{2}"),
    (r"\left(1, 2\right)", "(1,2)"),
    (r"90^\circ", "90"),
    (r"12\text{ cm}", "12"),
    (r"\text{even}", "even"),
    (r"\$1,234.50", "1234.5"),
    (r"50\%", "50"),
    ("x = 7", "7"),
    ("1{,}000", "1{,}000"),
    ("2.00", "2"),
]
DIFFERENT = [
    ("4", "-4"),
    ("1/2", "2"),
    ("(1,2)", "(2,1)"),
    ("12", "1,2"),
    (r"\frac{1}{2}", r"\frac{1}{3}"),
    ("2x", "2"),
    ("10", "1"),
    ("", "0"),
    (r"\sqrt{2}", "2"),
    ("100", "1"),
]


@pytest.mark.parametrize(("text", "boxed"), BOXES)
def test_the_answer_is_what_the_last_whole_box_holds(text, boxed):
    assert last_boxed(text) == boxed


@pytest.mark.parametrize(("one", "other"), SAME)
def test_ways_of_writing_one_answer(one, other):
    assert same_text(one, other), (normalised(one), normalised(other))


@pytest.mark.parametrize(("one", "other"), DIFFERENT)
def test_other_answers_stay_other(one, other):
    assert not same_text(one, other), normalised(one)


ROWS = [
    {"prompt": f"Problem {i}", "completion": rf"Since ..., \boxed{{\frac{{{i}}}{{7}}}}."}
    for i in (1, 2, 3, 4)
]
OUTPUTS = [r"so \boxed{1/7}", r"\boxed{2} no, \boxed{\dfrac27}", "3/7", r"\boxed{0.571}"]


@pytest.fixture
def scored(make_subject, say):
    def score(rows=ROWS, task="math"):
        subject = make_subject(rows=rows)
        say(subject, OUTPUTS, unstopped=(2,))
        return TASKS.get("math")(parse_choice(TASKS, task)).run(subject, None)

    return score


def test_boxed_answers_are_compared_and_an_output_without_a_box_is_wrong(scored):
    found = scored()
    assert [sample["correct"] for sample in found.samples] == [True, True, False, False]
    assert [sample["extracted"] for sample in found.samples] == ["1/7", r"\dfrac27", None, "0.571"]
    assert (found.metrics["accuracy"], found.metrics["boxed"], found.metrics["unstopped"]) == (
        0.5,
        0.75,
        0.25,
    )
    assert (found.version, found.settings["same"]) == ("math-boxed-1", "text")


@pytest.mark.parametrize("reference", ["4", r"\boxed{}", r"\boxed{4"])
def test_a_reference_without_an_answer_is_refused_by_line(scored, reference):
    with pytest.raises(DataError, match=r"^made\.jsonl:2: the reference has no \\boxed"):
        scored([ROWS[0], {"prompt": "p", "completion": reference}])


def test_values_are_compared_by_the_library_where_it_is_asked_for(scored, monkeypatch):
    fake = ModuleType("math_verify")
    fake.parse = lambda text: eval(
        text.removeprefix("\\boxed{").removesuffix("}").replace("\\dfrac27", "2/7")
    )
    fake.verify = lambda wanted, given: abs(wanted - given) < 0.001
    monkeypatch.setitem(sys.modules, "math_verify", fake)
    rows = [{"prompt": "p", "completion": rf"\boxed{{{i}/7}}"} for i in (1, 2, 3, 4)]
    found = scored(rows, {"method": "math", "same": "value"})
    assert [sample["correct"] for sample in found.samples] == [True, True, False, True]


def test_without_the_library_the_install_line_comes_before_anything_is_generated(scored, monkeypatch):
    monkeypatch.setitem(sys.modules, "math_verify", None)
    with pytest.raises(MissingExtra, match=r"pip install 'lrft\[math\]'"):
        scored(task={"method": "math", "same": "value"})


def test_the_library_itself_finds_values_equal():
    pytest.importorskip("math_verify", reason="needs the extra `math`")
    same = same_value()
    assert same("0.25", r"\frac{1}{4}") and same(r"x+1", r"1+x") and same(r"\{1,2\}", r"\{2,1\}")
    assert not same("0.26", r"\frac{1}{4}")
