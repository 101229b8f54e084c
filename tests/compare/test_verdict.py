"""Verdicts on numbers made by hand."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from lrft.compare.verdict import Criterion, Verdict, overall, stated, verdict


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
    found = verdict(criterion(**settings), values, OLD, seeds=3)
    assert found.name == name, found.reason


def test_fewer_seeds_than_stated_decide_nothing():
    found = verdict(criterion(all_seeds=True), LOWER, OLD, seeds=5)
    assert found.name == "not decidable"
    assert "3 of the 5 seeds" in found.reason


def test_a_diverged_run_leaves_its_seed_out_of_both_arms():
    found = verdict(criterion(all_seeds=True), [1.8, None, 1.6], OLD, seeds=3)
    assert (found.name, found.pairs, found.wins) == ("not decidable", 2, 2)
    assert verdict(criterion(all_seeds=True), [1.8, None, 1.6], OLD, seeds=2).name == "confirmed"


def test_one_seed_decides_nothing_whatever_was_stated():
    assert verdict(criterion(all_seeds=True), [1.0], [2.0], seeds=1).name == "not decidable"
    assert verdict(criterion(all_seeds=True), [None], [2.0], seeds=1).name == "not decidable"


def test_the_numbers_behind_a_verdict_are_given():
    found = verdict(criterion(at_most_ratio=0.91), LOWER, OLD, seeds=3)
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
