"""Gaps between groups whose rates are known, and on a model's own answers."""

import pytest

from lrft.evaluation.tasks.fairness import Answered, compare_groups
from lrft.registry.axes import TASKS
from lrft.registry.config import parse_choice
from lrft.registry.errors import DataError, RecipeError
from tests.evaluation.test_multiple_choice import LETTERS, TRUTH


def group(name: str, right: int, wrong: int, gold: str = "yes") -> list[Answered]:
    other = "no" if gold == "yes" else "yes"
    return [Answered(name, gold, gold, 0.9)] * right + [Answered(name, gold, other, 0.9)] * wrong


def test_groups_that_are_answered_alike_have_no_gap():
    found, n = compare_groups(group("a", 30, 10) + group("b", 30, 10), 30, None)
    assert n == 80 and found["acc_gap"] == 0 and found["acc/a"] == found["acc/b"] == 0.75
    assert found["ece/a"] == pytest.approx(0.15)
    assert found["acc_gap_low"] >= 0 < found["acc_gap_chance"]


def test_gaps_are_those_of_the_definitions():
    rows = group("a", 18, 2) + group("a", 10, 10, "no") + group("b", 12, 8) + group("b", 16, 4, "no")
    found, _ = compare_groups(rows + group("c", 3, 0), 30, "yes")
    assert found["left_out"] == 3 and "acc/c" not in found
    assert found["acc_gap"] == pytest.approx(abs(28 / 40 - 28 / 40))
    assert found["positive_gap"] == pytest.approx(28 / 40 - 16 / 40)
    assert found["odds_gap"] == pytest.approx(max(18 / 20 - 12 / 20, 10 / 20 - 4 / 20))
    assert found["positive_gap_low"] <= found["positive_gap"] <= found["positive_gap_high"]


def test_a_gap_that_chance_does_not_make_is_above_it():
    found, _ = compare_groups(group("a", 40, 0) + group("b", 5, 35), 30, None)
    assert found["acc_gap"] > found["acc_gap_chance"] and found["acc_gap_low"] > 0.5


def test_small_groups_are_refused_with_their_sizes():
    with pytest.raises(DataError, match="two groups of 30 rows or more are needed, and there are a 40, b 4"):
        compare_groups(group("a", 40, 0) + group("b", 4, 0), 30, None)


def test_on_a_model(make_subject):
    rows = [{**made, "dialect": name} for name in "xy" for made in (LETTERS, TRUTH)]
    subject = make_subject(rows=rows, format="instruction")
    run = lambda **more: TASKS.get("fairness")(  # noqa: E731
        parse_choice(TASKS, {"method": "fairness", "smallest": 2, **more})
    ).run(subject, None)
    found = run(group="dialect")
    assert found.n == 4 and found.metrics["acc/x"] == found.metrics["acc/y"] and found.metrics["acc_gap"] == 0
    with pytest.raises(DataError, match=r"made\.jsonl:1: no group in column 'group'"):
        run()
    with pytest.raises(RecipeError, match="'maybe' is no label"):
        run(group="dialect", positive="maybe")
