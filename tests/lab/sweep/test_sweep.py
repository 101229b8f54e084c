"""`lrft sweep`: combinations as written, each trained once, ordered by a score; what cannot be swept is refused."""

from __future__ import annotations

import csv
import json
import os
import re

import pytest
from typer.testing import CliRunner

from lrft.cli import app
from lrft.lab.sweep.points import metric_of, parts, points_of
from lrft.lab.sweep.report import cells, draw
from lrft.registry.errors import UsageError

LR = "optimizer.lr=0.1,0.01"


def swept(*arguments):
    found = CliRunner().invoke(app, ["sweep", *map(str, arguments), "--json"], catch_exceptions=False)
    return found, json.loads(found.stdout) if found.exit_code == 0 else {}


def labels(points):
    return [point.arm.label for point in points]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("4,8,16", ["4", "8", "16"]),
        ("[a, b],[c]", ["[a, b]", "[c]"]),
        ("{method: dora, rank: 4},lora", ["{method: dora, rank: 4}", "lora"]),
        ("'a,b',c", ["'a,b'", "c"]),
        ("1e-4", ["1e-4"]),
    ],
)
def test_values_are_cut_at_commas_outside_of_brackets_and_quotes(text, expected):
    assert parts(text) == expected


def test_points_are_all_combinations_with_what_holds_for_all(recipe, tmp_path):
    arms = tmp_path / "arms.yaml"
    arms.write_text("plain: []\nwide: [adapter.alpha=32, train.seed=3]\n")
    points = points_of(str(recipe("a")), ["adapter.rank=2,4", LR, "train.batch_size=2"], arms, "eval_loss")
    assert labels(points)[:4] == [
        "plain,rank=2,lr=0.1",
        "plain,rank=2,lr=0.01",
        "plain,rank=4,lr=0.1",
        "plain,rank=4,lr=0.01",
    ]
    assert len(points) == 8 and points[-1].values == {
        "arm": "wide",
        "adapter.rank": "4",
        "optimizer.lr": "0.01",
    }
    last = points[-1].arm.recipe
    assert (last.adapter.rank, last.adapter.alpha, last.optimizer.lr, last.train.seed) == (4, 32, 0.01, 3)
    assert {point.arm.recipe.train.batch_size for point in points} == {2}


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "a sweep needs a key with several values"),
        (["adapter.rank=4"], "a sweep needs a key with several values"),
        (["adapter.rank=4,4"], "adapter.rank=4,4: write every key once"),
        (["adapter.rank=4,8", "adapter.rank=2,16"], "adapter.rank=2,16: write every key once"),
        (["adapter.rank=4,,8"], "adapter.rank=4,,8: write every key once"),
        (["adapter.rank=4,-1"], "rank=-1: "),
        (
            [f"{key}={','.join(map(str, range(1, 2000)))}" for key in ("adapter.rank", "adapter.alpha")],
            "a sweep of 3,996,001 runs is one nobody waits for; write values for at most 10,000",
        ),
        (["other.yaml", "adapter.rank=4,8"], "other.yaml: a sweep has one recipe"),
    ],
)
def test_what_is_no_sweep_is_refused(recipe, arguments, said):
    with pytest.raises(UsageError, match=re.escape(said)):
        points_of(str(recipe("a")), arguments, None, "eval_loss")


def test_a_pipe_of_arms_is_not_waited_at(recipe, tmp_path):
    os.mkfifo(tmp_path / "arms.yaml")
    with pytest.raises(UsageError, match=r"--arms .*: is not a regular file"):
        points_of(str(recipe("a")), [], tmp_path / "arms.yaml", "eval_loss")


@pytest.mark.parametrize("text", ["- a\n", "a: adapter.rank=4\n", "a: [rank]\n", "a: [\n", ""])
def test_a_file_that_names_no_arms_is_refused(recipe, tmp_path, text):
    arms = tmp_path / "arms.yaml"
    arms.write_text(text)
    with pytest.raises(UsageError, match="--arms"):
        points_of(str(recipe("a")), [], arms, "eval_loss")


def test_a_score_of_a_task_is_taken_at_the_end_and_knows_which_way_is_better(recipe):
    source = str(recipe("a", extra="eval: {tasks: [exact_match]}\n"))
    points = points_of(source, ["adapter.rank=2,4"], None, "exact_match.exact_match")
    metric = metric_of(points, "exact_match.exact_match")
    assert metric.higher and points[0].arm.recipe.train.eval_tasks_every >= 3
    with pytest.raises(
        UsageError, match=r"not every point has this score; did you mean exact_match\.exact_match"
    ):
        metric_of(points, "exact_match.exact_mtch")
    assert not metric_of(points, "loss").higher


@pytest.mark.usefixtures("stand_in")
def test_points_are_trained_once_ordered_and_written_in_three_forms(recipe, tmp_path):
    out = tmp_path / "out"
    arguments = [recipe("a"), "adapter.rank=4,2", "optimizer.lr=0.1,0.01,0.9", "--out", out]
    _, record = swept(*arguments)
    scores = [row["score"] for row in record["rows"]]
    assert [row["label"] for row in record["rows"]][:2] == ["rank=2,lr=0.01", "rank=4,lr=0.01"]
    assert scores == [
        pytest.approx(0.02),
        pytest.approx(0.04),
        pytest.approx(1.02),
        pytest.approx(1.04),
        None,
        None,
    ]
    started = (out / "started").read_text().splitlines()
    assert len(started) == len(set(started)) == 6
    rows = list(csv.DictReader((out / "sweep.csv").open()))
    assert [row["score"] for row in rows] == ["" if score is None else repr(score) for score in scores]
    assert rows[0]["adapter.rank"] == "2" and (out / rows[0]["run"]).is_dir()
    assert json.loads((out / "sweep.json").read_text()) == record
    assert "| 2 | 0.01 | 0.0200 |" in (out / "sweep.md").read_text()
    assert cells(record)[-1][2] == "diverged"
    swept(*arguments)
    assert (out / "started").read_text().splitlines() == started


@pytest.mark.usefixtures("stand_in")
@pytest.mark.parametrize("asked", [[], ["--keep-checkpoints"]])
def test_checkpoints_are_kept_only_as_asked(recipe, tmp_path, asked):
    _, record = swept(recipe("a"), "adapter.rank=2,4", "--out", tmp_path / "out", *asked)
    for row in record["rows"]:
        folder = tmp_path / "out" / row["run"]
        assert (folder / "adapter").is_dir() and (folder / "checkpoints").is_dir() is bool(asked)


@pytest.mark.slow  # the same with a stand-in for the training is above
def test_two_ranks_are_trained_and_ordered(recipe, tmp_path):
    found, record = swept(recipe("a"), "adapter.rank=2,4", "train.max_steps=2", "--out", tmp_path / "out")
    assert "rank=2: " in found.stderr and "report: " in found.stderr
    first, second = record["rows"]
    assert first["score"] <= second["score"] and first["eval_loss"] == first["score"]
    assert 2 * min(first["trainable"], second["trainable"]) == max(first["trainable"], second["trainable"])


def test_a_plot_shows_the_first_key_of_numbers(tmp_path, monkeypatch):
    rows = [
        {"values": {"arm": a, "r": r}, "score": s, "label": a}
        for a, r, s in [("x", "2", 1.0), ("x", "4", 0.5), ("y", "2", None)]
    ]
    record = {"keys": ["arm", "r"], "metric": "loss", "rows": rows}
    pytest.importorskip("matplotlib")
    assert draw(record, tmp_path / "a.png") and (tmp_path / "a.png").read_bytes()[:4] == b"\x89PNG"
    for row in rows:
        row["values"]["r"] = "wide"
    assert draw(record, tmp_path / "b.png")
