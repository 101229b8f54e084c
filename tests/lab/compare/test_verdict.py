"""Verdicts on numbers made by hand."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from lrft.lab.tables.criterion import Criterion, stated
from lrft.lab.tables.verdict import Rows, Verdict, absent, judge_criterion, overall


def criterion(**settings):
    return Criterion(arm="new", against="old", **settings)


OLD = [2.0, 2.2, 1.8]
LOWER = [1.8, 2.0, 1.6]  # 0.2 better at every seed, ratio 0.9
HIGHER = [2.2, 2.4, 2.0]
MIXED = [1.8, 2.4, 1.8]

CASES = [
    ("all seeds better", {"all_seeds": True}, LOWER, "confirmed"),
    ("all seeds worse", {"all_seeds": True}, HIGHER, "refuted"),
    ("one way and the other", {"all_seeds": True}, MIXED, "not decidable"),
    ("no difference", {"all_seeds": True}, OLD, "not decidable"),
    ("ratio reached", {"at_most_ratio": 0.91}, LOWER, "confirmed"),
    ("ratio missed", {"at_most_ratio": 0.5}, LOWER, "not confirmed"),
    ("ratio missed in the wrong direction", {"at_most_ratio": 0.5}, HIGHER, "refuted"),
    ("gain reached", {"at_least_gain": 0.19}, LOWER, "confirmed"),
    ("gain missed", {"at_least_gain": 0.3}, LOWER, "not confirmed"),
    ("both, one missed", {"at_least_gain": 0.3, "all_seeds": True}, LOWER, "not confirmed"),
    ("within what is allowed", {"at_most_ratio": 1.2}, HIGHER, "confirmed"),
    ("equal, within what is allowed", {"at_most_ratio": 1.05}, OLD, "confirmed"),
    ("worse than what is allowed", {"at_most_ratio": 1.05}, HIGHER, "refuted"),
    ("around what is allowed", {"at_most_ratio": 1.05}, [2.2, 2.2, 1.8], "not decidable"),
    ("a loss that is allowed", {"at_least_gain": -0.25}, HIGHER, "confirmed"),
    ("higher is better", {"all_seeds": True, "better": "higher"}, HIGHER, "confirmed"),
    ("higher is better, and it is not", {"at_least_gain": 0.0, "better": "higher"}, LOWER, "refuted"),
]


@pytest.mark.parametrize(
    ("settings", "values", "name"), [case[1:] for case in CASES], ids=[c[0] for c in CASES]
)
def test_a_verdict_follows_from_the_criterion_stated(settings, values, name):
    found = judge_criterion(criterion(**settings), values, OLD, seeds=3)
    assert found.name == name, found.reason


def test_fewer_seeds_than_stated_decide_nothing():
    found = judge_criterion(criterion(all_seeds=True), LOWER, OLD, seeds=5)
    assert found.name == "not decidable"
    assert "3 of the 5 seeds" in found.reason


def test_a_diverged_run_leaves_its_seed_out_of_both_arms():
    found = judge_criterion(criterion(all_seeds=True), [1.8, None, 1.6], OLD, seeds=3)
    assert (found.name, found.pairs, found.wins) == ("not decidable", 2, 2)
    assert judge_criterion(criterion(all_seeds=True), [1.8, None, 1.6], OLD, seeds=2).name == "confirmed"


def test_one_seed_decides_nothing_whatever_was_stated():
    assert judge_criterion(criterion(all_seeds=True), [1.0], [2.0], seeds=1).name == "not decidable"
    assert judge_criterion(criterion(all_seeds=True), [None], [2.0], seeds=1).name == "not decidable"


def test_the_numbers_behind_a_verdict_are_given():
    found = judge_criterion(criterion(at_most_ratio=0.91), LOWER, OLD, seeds=3)
    assert found.gain == pytest.approx(0.2)
    assert found.interval == pytest.approx((0.2, 0.2))
    assert found.ratio == pytest.approx(0.9)
    assert (found.wins, found.pairs) == (3, 3)


@pytest.mark.parametrize(
    ("names", "name"),
    [
        (["confirmed", "confirmed"], "confirmed"),
        (["confirmed", "not confirmed"], "not confirmed"),
        (["not confirmed", "not decidable"], "not decidable"),
        (["confirmed", "not decidable", "refuted"], "refuted"),
    ],
)
def test_several_criteria_are_confirmed_only_together(names, name):
    assert overall([Verdict(n, None, None, None, 0, 0, "") for n in names]) == name


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({}, "needs a condition"),
        ({"at_most_ratio": 0.9, "better": "higher"}, "better: lower"),
        ({"all_seeds": True, "arm": "old"}, "name two arms"),
    ],
)
def test_a_criterion_that_decides_nothing_is_refused(settings, message):
    with pytest.raises(ValidationError, match=message):
        Criterion(**{"arm": "new", "against": "old", **settings})


def test_a_criterion_is_stated_in_a_sentence():
    text = stated(criterion(at_most_ratio=0.5, all_seeds=True))
    assert text == "eval_loss of new, against old: at most 0.5 times as large and lower at every seed"


def everywhere(arm, against, seeds=1, **settings):
    settings = {"everywhere": True, **settings}
    return judge_criterion(criterion(metric="analysis.x.y", **settings), arm, against, seeds)


LAYERS = {"a": 2.0, "b": 4.0}


def test_everywhere_is_confirmed_where_no_key_of_no_seed_is_worse():
    found = everywhere([{"a": 1.0, "b": 4.0}, {"a": 1.5, "b": 3.0}], [LAYERS, LAYERS])
    assert (found.name, found.wins, found.pairs) == ("confirmed", 3, 4)
    assert found.gain == pytest.approx((1 + 0 + 0.5 + 1) / 4)


def test_one_key_that_is_worse_is_named_and_not_forgiven():
    found = everywhere([{"a": 0.1, "b": 4.1}], [LAYERS])
    assert found.name == "not confirmed"
    assert "b at seed 1 of 1" in found.reason and "worse at 1 of 2 keys" in found.reason


def test_everywhere_is_refuted_where_the_mean_is_worse_at_every_seed():
    assert everywhere([{"a": 1.9, "b": 9.0}], [LAYERS]).name == "refuted"
    assert everywhere([{"a": 1.9, "b": 9.0}, {"a": 0.1, "b": 4.1}], [LAYERS] * 2).name == "not confirmed"
    assert everywhere([{"a": 3.0, "b": 5.0}], [LAYERS], better="higher").name == "confirmed"


def test_equal_everywhere_confirms_nothing():
    assert everywhere([LAYERS], [{"a": 2.0 + 1e-9, "b": 4.0}]).name == "not confirmed"


def test_keys_that_differ_and_metrics_without_keys_are_refused():
    with pytest.raises(ValueError, match="different keys: b, c"):
        everywhere([{"a": 1.0, "c": 1.0}], [LAYERS])
    with pytest.raises(ValueError, match="has no keys"):
        everywhere([1.0], [2.0])
    with pytest.raises(ValueError, match="everywhere: true"):
        judge_criterion(criterion(all_seeds=True), [LAYERS] * 3, [LAYERS] * 3, 3)


def test_a_ratio_may_have_to_be_large():
    five = criterion(better="higher", at_least_ratio=5)
    assert judge_criterion(five, [10.0, 12.0], [2.0, 2.0], 2).name == "confirmed"
    assert judge_criterion(five, [9.0, 9.0], [2.0, 2.0], 2).name == "not confirmed"
    assert judge_criterion(five, [3.0, 4.0], [0.0, 0.0], 2).name == "confirmed"
    assert judge_criterion(five, [1.0, 1.0], [2.0, 2.0], 2).name == "refuted"


def test_an_absent_arm_has_a_verdict_of_its_own_that_leaves_the_others_theirs():
    missing = absent(["new"])
    assert missing.name == "method not in lrft yet"
    confirmed = judge_criterion(criterion(all_seeds=True), LOWER, OLD, 3)
    assert overall([missing, confirmed]) == "confirmed"
    assert overall([missing, missing]) == "method not in lrft yet"


def test_rows_widen_the_interval_that_decides():
    """The arm is better at every seed, but through one row alone: other rows would not have shown it."""
    tokens = [10] * 8
    against = [[20.0] * 8, [20.2] * 8, [19.8] * 8]
    arm = [[row[0] - 4.0, *(value + 0.1 for value in row[1:])] for row in against]
    ours, theirs = ([sum(row) / 80 for row in losses] for losses in (arm, against))
    assert judge_criterion(criterion(all_seeds=True), ours, theirs, 3).name == "confirmed"
    found = judge_criterion(criterion(all_seeds=True), ours, theirs, 3, Rows(arm, against, tokens))
    assert found.name == "not decidable"
    assert found.interval[0] < 0 < found.gain < found.interval[1]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"everywhere": True, "all_seeds": True}, "everywhere stands alone"),
        ({"at_least_ratio": 2.0}, "at_least_ratio is for better: higher"),
        ({"at_most_ratio": 2.0, "better": "higher"}, "at_most_ratio is for better: lower"),
    ],
)
def test_conditions_that_do_not_go_together_are_refused(settings, message):
    with pytest.raises(ValidationError, match=message):
        criterion(**settings)


def test_an_arm_may_be_compared_with_itself_by_another_metric_alone():
    with pytest.raises(ValidationError, match="another against_metric"):
        Criterion(arm="x", against="x", all_seeds=True, metric="a", against_metric="a")
    said = stated(Criterion(arm="x", against="x", everywhere=True, metric="a", against_metric="b"))
    assert said == "a of x, against b of x: higher nowhere"


def test_reaching_within_stands_alone_and_is_stated_as_such():
    assert "within 0.5 of the steps" in stated(criterion(metric="loss", reaches_within=0.5))
    for settings in ({"all_seeds": True}, {"better": "higher"}, {"against_metric": "x"}):
        with pytest.raises(ValidationError, match="reaches_within stands alone"):
            criterion(metric="loss", reaches_within=0.5, **settings)
