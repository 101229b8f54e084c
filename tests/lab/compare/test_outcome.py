"""Numbers read back from run folders."""

from __future__ import annotations

import json

import pytest

from lrft.lab.runs.outcome import held_out_rows, measured, share_to_reach, value
from lrft.lab.runs.planned import PlannedRun
from lrft.registry.errors import LrftError


@pytest.fixture
def run(tmp_path):
    """`run(name, losses, **result)` -> a finished run that had these losses."""

    def make(name: str, losses: list[float], **result) -> PlannedRun:
        folder = tmp_path / name
        (folder / "adapter").mkdir(parents=True)
        lines = [{"step": step + 1, "loss": loss} for step, loss in enumerate(losses)]
        (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
        (folder / "result.json").write_text(json.dumps(result))
        return PlannedRun(name, 0.1, 0, None, folder)  # type: ignore[arg-type]

    return make


def test_a_dotted_key_leads_into_the_result(run):
    found = {"x": {"by_site": {"model.layers.0.q": 1.0, "b": 2.0}, "mean": 1.5}}
    one = run("one", [1.0], analysis=found)
    assert value(one, "analysis.x.mean") == 1.5
    assert measured(one, "analysis.x.by_site") == {"model.layers.0.q": 1.0, "b": 2.0}
    assert value(one, "analysis.x.by_site.model.layers.0.q") == 1.0
    with pytest.raises(LrftError, match="a number for each of 2 keys"):
        value(one, "analysis.x.by_site")
    with pytest.raises(LrftError, match=r"no number analysis\.y"):
        measured(one, "analysis.y")


def test_keyed_numbers_that_are_not_finite_are_none(run):
    assert measured(run("one", [1.0], a={"x": float("nan"), "y": 1.0}), "a") is None


def test_rows_are_there_where_the_run_kept_them(run):
    kept = run("kept", [1.0], held_out_rows={"loss": [1.0, 2.0], "tokens": [3, 4]})
    assert held_out_rows(kept) == ([1.0, 2.0], [3, 4])
    assert held_out_rows(run("not", [1.0])) is None


def test_the_share_of_steps_to_reach_a_loss(run):
    """Up to twenty steps nothing is smoothed, so the answer can be read off the losses."""
    slow = run("slow", [5.0, 4.0, 3.0, 2.0, 1.0])
    fast = run("fast", [3.0, 1.0, 0.5, 0.4, 0.3])
    assert share_to_reach(fast, slow, "loss") == 2 / 5
    assert share_to_reach(slow, slow, "loss") == 1.0
    assert share_to_reach(slow, fast, "loss") == 2.0  # never


def test_smoothing_keeps_one_lucky_step_from_counting(run):
    """A hundred steps are smoothed over five, and the first values weigh fully: a constant stays that constant."""
    level = run("level", [2.0] * 100)
    lucky = run("lucky", [3.0] * 50 + [1.9] + [3.0] * 19 + [1.0] * 30)
    share = share_to_reach(lucky, level, "loss")
    assert 0.70 < share < 0.76
    assert share_to_reach(level, level, "loss") == 0.01


def test_a_diverged_run_reaches_nothing_and_a_missing_metric_is_named(run):
    one, gone = run("one", [1.0, 0.5]), run("gone", [1.0])
    (gone.folder / "diverged.json").write_text("{}")
    assert share_to_reach(gone, one, "loss") is None
    with pytest.raises(LrftError, match="no number eval_loss"):
        share_to_reach(one, one, "eval_loss")
