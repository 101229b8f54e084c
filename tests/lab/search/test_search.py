"""`lrft search`: arms, what survives an interruption, fronts, the best recipe, and what cannot be searched."""

from __future__ import annotations

import csv
import json
import re

import pytest
from typer.testing import CliRunner

from lrft.cli import app
from lrft.core.search import Trial
from lrft.lab.search.front import front
from lrft.lab.search.report import cells, draw, points, sentences
from lrft.lab.search.settings import parse_method, parse_settings
from lrft.recipe.load import load_recipe
from lrft.registry.errors import UsageError
from tests.each import each

SPACE = "adapter.rank: [2, 4, 8]\noptimizer.lr: [0.001, 0.01, 0.9]\n"


@pytest.fixture
def searched(recipe, tmp_path):
    """`searched("--budget", 4)` -> what the command said, and its document."""
    space = tmp_path / "space.yaml"
    space.write_text(SPACE)
    source = recipe("a")

    def call(*arguments, out="out", fails=False):
        words = ["search", source, "--space", space, "--out", tmp_path / out, *arguments, "--json"]
        found = CliRunner().invoke(app, list(map(str, words)), catch_exceptions=fails)
        return (
            (found, {} if found.exit_code else json.loads(found.stdout))
            if not fails
            else (found, found.exception)
        )

    return call


def lines_of(folder):
    return [json.loads(line) for line in (folder / "arms.jsonl").read_text().splitlines()]


@pytest.mark.usefixtures("stand_in")
def test_every_arm_is_trained_once_and_the_best_is_a_recipe_of_its_own(searched, tmp_path):
    out = tmp_path / "out"
    _, record = searched("--budget", 20, "--method", "grid")
    assert [line["values"] for line in lines_of(out)][:2] == [
        {"adapter.rank": 2, "optimizer.lr": 0.001},
        {"adapter.rank": 2, "optimizer.lr": 0.01},
    ]
    assert [row["arm"] for row in record["rows"]] == [1, 4, 7, 0, 3, 6, 2, 5, 8] and record["exhausted"]
    assert record["rows"][0]["score"] == pytest.approx(0.02) and record["rows"][-1]["score"] is None
    assert (
        record["rows"][0]["step_seconds"] == 0.75
        and not (out / record["rows"][0]["run"] / "checkpoints").exists()
    )
    best = load_recipe(out / record["best_recipe"]).recipe
    assert (best.adapter.rank, best.optimizer.lr, record["best"]) == (2, 0.01, 1)
    assert record["rows"][0]["front"] == ["trainable", "bytes", "step_seconds"]
    assert all(row["front"] == [] for row in record["rows"][1:])
    rows = list(csv.DictReader((out / "search.csv").open()))
    assert [row["score"] for row in rows][-1] == "" and rows[0]["adapter.rank"] == "2"
    assert json.loads((out / "search.json").read_text()) == record
    assert "| 1 | 2 | 0.01 | 0.0200 |" in (out / "search.md").read_text()
    assert cells(record)[-1][3] == "failed" and record["rows"][-1]["failure"] == "step 2: loss nan"
    assert (
        sentences(record)[0] == "9 arms by grid, seed 0; there are no others, so 11 of the budget are left."
    )
    started = (out / "started").read_text().splitlines()
    assert len(started) == len(set(started)) == 9
    searched("--budget", 20, "--method", "grid")
    assert (out / "started").read_text().splitlines() == started


@pytest.mark.usefixtures("stand_in")
def test_a_search_that_was_killed_goes_on_with_the_arms_it_would_have_had(searched, tmp_path):
    """Cut off after some lines, in the midst of one, and with a run of the next arm finished."""
    method = "{method: evolution, population: 2, parents: 2}"
    _, whole = searched("--budget", 5, "--method", method, "--jobs", 2)
    lines = (tmp_path / "out" / "arms.jsonl").read_text()
    for kept in (0, 3):
        cut = "".join(lines.splitlines(keepends=True)[:kept]) + lines.splitlines()[kept][:20]
        (tmp_path / "out" / "arms.jsonl").write_text(cut)
        _, again = searched("--budget", 5, "--method", method)
        assert (tmp_path / "out" / "arms.jsonl").read_text() == lines
        assert again["rows"] == whole["rows"] and again["best"] == whole["best"]
    searched("--budget", 3, "--method", method, out="other")
    assert lines_of(tmp_path / "other") == lines_of(tmp_path / "out")[:3]
    searched("--budget", 5, "--method", method, out="other")
    assert lines_of(tmp_path / "other") == lines_of(tmp_path / "out")


@pytest.mark.usefixtures("stand_in")
def test_a_folder_holds_one_search(searched, tmp_path, recipe):
    searched("--budget", 2)
    asked = [
        (("--seed", 1), "begun with another seed (0, now 1)"),
        (("--against", "bytes"), 'begun with another against ("trainable", now "bytes")'),
        (("--method", "grid"), "begun with another method"),
        (("adapter.alpha=3",), "begun with another recipe"),
    ]
    for arguments, said in asked:
        _, error = searched("--budget", 2, *arguments, fails=True)
        assert isinstance(error, UsageError) and said in str(error)
    lines = tmp_path / "out" / "arms.jsonl"
    text = lines.read_text()
    lines.write_text(text.replace('"loss": ', '"loss": 1'))
    _, error = searched("--budget", 3, fails=True)
    assert "arms.jsonl: is not what lrft wrote" in str(error)
    text = re.sub(r', "sha256": "[0-9a-f]+"', "", text)  # as an older lrft wrote them
    lines.write_text(text.replace("-seed0-", "-seed0-f"))
    _, error = searched("--budget", 3, fails=True)
    assert "arm 0 was trained as" in str(error) and "has changed; choose another folder" in str(error)
    lines.write_text(text.replace('"arm": 1', '"arm": 4'))
    _, error = searched("--budget", 3, fails=True)
    assert "has arm 4 where 1 is meant" in str(error)
    lines.write_text(text)
    (tmp_path / "out" / "asked.json").unlink()
    _, error = searched("--budget", 3, fails=True)
    assert "asked.json: is missing beside arms.jsonl" in str(error)


@pytest.mark.usefixtures("stand_in")
def test_an_arm_that_does_not_fit_into_memory_has_no_score_and_another_failure_ends_the_search(
    searched, tmp_path
):
    (tmp_path / "space.yaml").write_text("adapter.rank: [4, 8]\n")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "small").touch()
    found, record = searched("--budget", 2, "optimizer.lr=0.01")
    assert [row["score"] is None for row in record["rows"]] == [False, True] and record["rows"][0]["front"]
    assert record["rows"][1]["failure"] == "out of memory; lower train.batch_size"
    assert re.search(r"1 arms have no score; arm \d: out of memory", found.stderr)
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "broken").touch()
    _, error = searched("--budget", 2, out="elsewhere", fails=True)
    assert error.exit_code == 3 and "data.train: no rows" in str(error)


@pytest.mark.usefixtures("stand_in")
def test_where_every_arm_diverges_there_is_no_best_recipe(searched, tmp_path):
    (tmp_path / "space.yaml").write_text("optimizer.lr: {low: 0.6, high: 0.9}\n")
    found, record = searched("--budget", 2)
    assert record["best"] is None and record["best_recipe"] is None and "No arm has a score" in found.stderr
    assert not (tmp_path / "out" / "best.yaml").exists()


@each(
    ("text", "said"),
    [
        ("evoluton", "unknown search 'evoluton'; did you mean evolution"),
        ("{method: grid, points: 1}", "points must be an integer at least 2"),
        ("{method: grid, pionts: 3}", "pionts is no setting of grid; did you mean points?"),
        ("{method: random, points: 3}", "points is no setting of random, which has none"),
        ("{method: evolution, population: 4, parents: 5}", "parents: 5 are more than the 4"),
        ("[grid]", "expected the name of a search"),
        ("{points: 3}", "`method` must name one search"),
    ],
)
def test_a_method_that_is_none_is_refused(text, said):
    with pytest.raises(UsageError, match=re.escape(said)):
        parse_method(text)


def test_flags_that_make_no_sense_are_refused(tmp_path):
    with pytest.raises(UsageError, match="--against loss: choose trainable or bytes or step_seconds"):
        parse_settings(tmp_path, budget=1, against="loss")
    with pytest.raises(UsageError, match="add --cluster slurm"):
        parse_settings(tmp_path, budget=1, cluster_settings=["timeout_min=4"])


def test_a_score_that_no_arm_takes_is_refused_before_anything_is_made(searched, tmp_path):
    _, error = searched("--budget", 2, "--metric", "exact_match.exact_match", fails=True)
    assert "--metric exact_match.exact_match: not every point has this score" in str(error)
    assert not (tmp_path / "out").exists()


@each(
    ("losses", "expected"),
    [
        ([(3.0, 1.0), (2.0, 2.0), (2.5, 3.0), (1.0, 4.0)], [0, 1, 3]),
        ([(1.0, 1.0), (1.0, 1.0), (1.0, 0.5)], [2]),
        ([(1.0, 1.0), (1.0, 1.0)], [0]),
        ([(2.0, 1.0), None, (1.0, 1.0)], [2]),
        ([None], []),
    ],
)
def test_a_front_is_what_no_other_arm_beats_at_no_more_cost(losses, expected):
    assert front([Trial((place,), of_one) for place, of_one in enumerate(losses)]) == expected


def test_a_plot_has_every_arm_and_its_front(tmp_path):
    rows = [
        {"score": score, "trainable": cost, "bytes": 2 * cost, "step_seconds": None, "front": on}
        for score, cost, on in [(1.0, 10, ["trainable"]), (2.0, 20, []), (None, 5, [])]
    ]
    record = {"rows": rows, "metric": "eval_loss"}
    assert points(record, "trainable") == [(10.0, 1.0), (20.0, 2.0)] and points(record, "step_seconds") == []
    assert points(record, "trainable", on_front=True) == [(10.0, 1.0)]
    pytest.importorskip("matplotlib")
    assert draw(record, tmp_path / "a.png") and (tmp_path / "a.png").read_bytes()[:4] == b"\x89PNG"


@pytest.mark.slow  # the same with a stand-in for the training is above
def test_two_arms_are_trained_at_a_time_and_ordered(searched):
    found, record = searched("--budget", 2, "--jobs", 2, "train.max_steps=2")
    assert "arm 0: rank=" in found.stderr and "report: " in found.stderr
    first, second = record["rows"]
    assert first["score"] <= second["score"] and first["eval_loss"] == first["score"]
    assert first["step_seconds"] > 0 and first["bytes"] > 0
