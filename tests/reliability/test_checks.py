"""The checks of the reliability plan with a few faults each; `scripts/reliability.py` runs them in full."""

from __future__ import annotations

import importlib
import json

import pytest

import reliability
import reliability_page
from tests.reliability import (
    accumulation,
    connected,
    exact,
    hostile_bases,
    hostile_folders,
    hostile_names,
    hostile_numbers,
    hostile_requests,
    hostile_rows,
    out_of_memory,
    outcome,
    planted_secrets,
    recipes,
    two_runs,
)


@pytest.mark.parametrize("seed", [3])
def test_gradients_are_the_same_however_sixteen_rows_are_cut(seed):
    found = accumulation.check(2, seed)
    assert found.failures == [] and found.held == 2 and 0 < found.facts["worst"] <= accumulation.CLOSE


def test_another_divisor_is_seen(monkeypatch):
    """The check fails where each micro-batch is divided by its own targets: the classic fault."""
    original = accumulation.step_loss

    def per_micro_batch(run, batches, objective):
        from lrft.data.steps import StepBatches

        for batch in batches.micro_batches:
            one = StepBatches([batch], 1, len(batch.targets) * batches.micro_batch_count, 1, 1, 0)
            original(run, one, objective)

    monkeypatch.setattr(accumulation, "step_loss", per_micro_batch)
    assert accumulation.check(1, 0).held == 0


def test_broken_recipes_end_in_sentences():
    found = recipes.check(150, 5)
    assert found.failures == [] and found.held == 150


@pytest.mark.parametrize(
    ("check", "n"),
    [
        (hostile_rows.check, 8),
        (hostile_folders.check, 6),
        (hostile_bases.check, 8),
        (hostile_requests.check, 12),
        (hostile_requests.talk, 3),
        *(
            pytest.param(one.check, n, marks=pytest.mark.slow)
            for one, n in ((hostile_names, 20), (planted_secrets, 20), (out_of_memory, 2))
        ),
    ],
    ids=lambda value: value.__module__.rpartition(".")[2] if callable(value) else str(value),
)
def test_what_a_stranger_may_give_or_the_machine_may_lack_holds(check, n):
    found = check(n, 4)
    assert found.failures == [] and found.held == n


def test_a_bad_row_that_is_let_through_is_seen(monkeypatch):
    monkeypatch.setattr(hostile_rows, "check_data", lambda recipe: type("Found", (), {"text": None}))
    monkeypatch.setattr(hostile_rows, "check_text", lambda text, recipe: None)
    assert hostile_rows.check(2, 0).held == 0


@pytest.mark.slow
def test_numbers_that_are_none_are_never_saved():
    found = hostile_numbers.check(8, 2)
    assert found.failures == [] and found.held == 8


@pytest.mark.slow
def test_a_second_run_in_a_folder_is_refused():
    found = two_runs.check(2, 0)
    assert found.failures == [] and found.held == 2


@pytest.mark.slow
def test_a_resume_after_a_random_step_is_exact():
    assert len(exact.CELLS) == 48 and exact.check(2, 1).failures == []


def test_the_script_goes_on_where_it_was_stopped(tmp_path, monkeypatch):
    asked = []

    def check(n, seed):
        asked.append((n, seed))
        if len(asked) == 2:
            raise KeyboardInterrupt
        found = outcome.Outcome(facts={"worst": float(seed)}, counts={"met": n})
        for k in range(n):
            found.add(k != 1, f"fault {k}")
        return found

    monkeypatch.setattr(outcome, "check_of_a_test", check, raising=False)
    kind = reliability.Kind("R0", "a test", "tests.reliability.outcome:check_of_a_test", 12, 5)
    monkeypatch.setattr(reliability, "KINDS", {"test": kind})
    out = tmp_path / "record.json"
    with pytest.raises(KeyboardInterrupt):
        reliability.main(["--out", str(out)])
    assert reliability.main(["--out", str(out)]) == 1
    assert asked == [(5, 0), (5, 1), (5, 1), (2, 2)]
    entry = json.loads(out.read_text())["checks"]["test"]
    assert (entry["tried"], entry["held"], entry["parts"]) == (12, 9, 3)
    assert entry["failures"] == ["fault 1"] * 3 and entry["facts"] == {"worst": 2.0, "met": 12}
    assert reliability.main(["--out", str(out)]) == 1 and len(asked) == 4  # nothing is left to do
    assert reliability.main(["--out", str(out), "--seed", "1", "--n", "1"]) == 0  # other faults, counted anew
    monkeypatch.setattr(reliability_page, "KINDS", {"test": kind})
    shown = reliability_page.counts({"test": entry})
    assert "| R0 | a test | 12 | 9 of 12 | met 12, worst 2 |" in shown and entry["torch"] in shown


def test_a_check_that_is_not_there_is_refused(capsys):
    with pytest.raises(SystemExit):
        reliability.main(["--kind", "floods"])
    assert "--kind floods: choose of exact, numbers" in capsys.readouterr().err


def test_every_check_of_the_script_is_there_and_counts_as_the_others():
    for kind in reliability.KINDS.values():
        module, _, function = kind.function.partition(":")
        assert callable(getattr(importlib.import_module(module), function)), kind
        assert kind.full >= kind.part > 0


@pytest.mark.slow
@pytest.mark.parametrize(("check", "n"), [("kills", 2), ("signals", 2), ("damaged", 6), ("disk", 4)])
def test_a_connected_check_holds(check, n):
    found = getattr(connected, check)(n, 1)
    assert found.failures == [] and found.held == found.tried >= n
