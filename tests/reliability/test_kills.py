"""R1, R2 and R3 in short: some kills, a chain and signals at random instants; `scripts/reliability` does them all."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.reliability.kills import run_chains, run_kills
from tests.reliability.random_signals import run_signals
from tests.training.conftest import tiny_recipe

pytestmark = pytest.mark.slow
SCORED = "  at_end: true\n  tasks: [loss, {method: exact_match, max_new_tokens: 4}]\n"


small = tiny_recipe  # a fixture of theirs


@pytest.fixture
def scored(small, tmp_path) -> Path:
    """Eight steps on the tiny model that are scored in the end."""
    path = small(tmp_path)
    path.write_text(path.read_text().replace("eval: {tasks: [loss]}\n", f"eval:\n{SCORED}"))
    return path


def test_trainings_killed_anywhere_and_inside_a_save_end_as_one_that_was_not(scored, tmp_path):
    figures = run_kills(scored, tmp_path / "runs", count=6, in_a_save=3, seed=1)
    assert figures.passed and figures.in_a_save >= 3, figures.record()


def test_a_training_killed_five_times_in_a_row_ends_as_one_that_was_not(scored, tmp_path):
    figures = run_chains(scored, tmp_path / "runs", count=1, seed=2)
    assert figures.passed and figures.kills == 5, figures.record()


def test_signals_at_random_instants_are_answered_and_lose_nothing(scored, tmp_path):
    figures = run_signals(scored, tmp_path / "work", count=5, seed=3)
    assert figures.passed and figures.stopped, figures.record()
