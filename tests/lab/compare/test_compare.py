"""Comparisons from recipes to report: what is run, what is kept, what is chosen, what is said."""

from __future__ import annotations

import json
import os
import signal
import threading
import time
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from lrft.commands.compare import compare_command
from lrft.lab.compare.command import compare_recipes
from lrft.lab.compare.comparison import blown_up, choose_rates
from lrft.lab.compare.match import Matched
from lrft.lab.compare.per_seed import seeds_table
from lrft.lab.compare.plot import draw
from lrft.lab.compare.report import table
from lrft.lab.compare.settings import parse_settings
from lrft.lab.runs.outcome import value
from lrft.lab.runs.planned import PlannedRun, make_arm
from lrft.registry.errors import Interrupted, LrftError, NumericalError, UsageError


@pytest.fixture
def two(recipe):
    return [str(recipe("a")), str(recipe("b", "{method: lora, rank: 6, alpha: 8}"))]


def compare(arguments, out, grid="1e-3,1e-2,1e-1", seeds="3", by="steps", jobs=2):
    record = compare_recipes(arguments, parse_settings(out, by=by, rates=grid, seeds=seeds, jobs=jobs))
    return "\n".join(table(record)), json.loads((out / "report.json").read_text())


def started(out: Path) -> list[str]:
    return (out / "started").read_text().split()


def test_every_arm_gets_the_same_grid_on_the_tuning_seed_and_the_same_seeds(stand_in, two, tmp_path):
    _, record = compare(two, tmp_path / "out")
    names = [name.rsplit("-", 1)[0] for name in started(tmp_path / "out")]
    tuning = {f"{arm}-lr{rate}-seed1000" for arm in "ab" for rate in ("0.001", "0.01", "0.1")}
    assert set(names[:6]) == tuning
    assert set(names[6:]) == {f"{arm}-lr0.01-seed{seed}" for arm in "ab" for seed in range(3)}
    assert [arm["rate"] for arm in record["arms"]] == [0.01, 0.01]
    assert [point["loss"] for point in record["arms"][0]["grid"]] == pytest.approx([2.04, 1.04, 2.04])
    assert not record["arms"][0]["rate_at_edge"]


def test_losses_are_paired_by_seed(stand_in, two, tmp_path):
    """The stand-in's loss is rank / 100 + seed / 1000 at the best rate."""
    shown, record = compare(two, tmp_path / "out")
    first, second = record["arms"]
    assert first["losses"] == pytest.approx([0.04, 0.041, 0.042])
    assert first["mean"] == pytest.approx(0.041)
    assert first["difference"] is None
    assert second["difference"]["mean"] == pytest.approx(0.02)
    assert second["difference"]["interval"] == pytest.approx([0.02, 0.02])
    assert (second["difference"]["lower"], second["difference"]["higher"]) == (0, 3)
    assert second["difference"]["p"] == 0.25
    assert "+0.0200" in shown


def test_costs_are_read_from_the_runs(stand_in, two, tmp_path):
    _, record = compare(two, tmp_path / "out", grid="1e-2", seeds="2")
    arm = record["arms"][0]
    assert (arm["adapter_bytes"], arm["checkpoint_bytes"]) == (1000, 3000)  # of the newest checkpoint
    assert (arm["run_seconds"], arm["step_seconds"], arm["peak_memory_bytes"]) == (2.0, 1.5, 2**20)
    assert arm["trainable"] > 0
    assert record["environments"] == [{"versions": {"lrft": "0"}, "hardware": {"cores": 2}, "git": None}]


def test_one_rate_is_not_tuned(stand_in, two, tmp_path):
    _, record = compare(two, tmp_path / "out", grid="1e-2", seeds="5,6")
    assert len(started(tmp_path / "out")) == 4
    assert record["tuning_seed"] is None
    assert record["seeds"] == [5, 6]


def test_a_second_call_runs_only_what_is_new(stand_in, two, tmp_path):
    out = tmp_path / "out"
    _, before = compare(two, out)
    assert len(started(out)) == 12
    _, after = compare(two, out)
    assert len(started(out)) == 12
    assert [arm["losses"] for arm in after["arms"]] == [arm["losses"] for arm in before["arms"]]
    compare(two, out, seeds="4")
    assert len(started(out)) == 14


def test_a_rate_that_diverges_is_not_chosen_and_not_tried_again(stand_in, two, tmp_path):
    out = tmp_path / "out"
    _, record = compare(two, out, grid="1e-1,1", seeds="1")
    assert [arm["rate"] for arm in record["arms"]] == [0.1, 0.1]
    assert record["arms"][0]["grid"][1]["loss"] is None
    assert "| a | **2.0400** | diverged |" in (out / "report.md").read_text()
    assert "(edge)" in (out / "report.md").read_text()
    count = len(started(out))
    compare(two, out, grid="1e-1,1", seeds="1")
    assert len(started(out)) == count


def test_an_arm_that_diverges_everywhere_is_an_error(stand_in, two, tmp_path):
    with pytest.raises(NumericalError, match="diverged at every rate of 1, 2"):
        compare(two, tmp_path / "out", grid="1,2")


def test_a_failed_run_stops_the_comparison_with_its_own_code(stand_in, two, tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    (out / "broken").touch()
    with pytest.raises(
        LrftError, match=r"exit code 3: data\.train: no rows .*the same command goes on"
    ) as error:
        compare(two, out)
    assert error.value.exit_code == 3
    (out / "broken").unlink()
    compare(two, out)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interruption_reaches_the_runs_and_the_same_call_goes_on(stand_in, two, tmp_path, number):
    out = tmp_path / "out"
    out.mkdir()
    (out / "slow").touch()

    def interrupt():
        while len(list(out.glob("runs/*/waiting"))) < 2:
            time.sleep(0.01)
        os.kill(os.getpid(), number)

    threading.Thread(target=interrupt).start()
    handlers = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    with pytest.raises(Interrupted, match="0 of 12 runs finished") as error:
        compare(two, out)
    assert error.value.exit_code == 128 + number
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == handlers
    assert len(list(out.glob("runs/*/saved"))) == 2
    assert len(started(out)) == 2
    (out / "slow").unlink()
    _, record = compare(two, out)
    assert None not in record["arms"][0]["losses"]


def test_progress_counts_all_runs_from_the_start(stand_in, two, tmp_path, capsys):
    compare(two, tmp_path / "out")
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("[")]
    assert lines[0].startswith("[1/12] ")
    assert "left" in lines[0]
    assert lines[-1].startswith("[12/12] ")
    assert "left" not in lines[-1]


def test_arms_of_one_group_share_the_rate_that_is_best_for_both(recipe):
    path = recipe("a")
    arms = [make_arm("x", path, group="g"), make_arm("y", path, group="g"), make_arm("z", path)]
    grid = {"x": [1.0, 2.0, 3.0], "y": [5.0, 3.0, None], "z": [2.0, 2.0, 1.0]}
    assert choose_rates(arms, {arm: [1e-4, 1e-3, 1e-2] for arm in "xyz"}, grid) == {
        "x": 1e-3,
        "y": 1e-3,
        "z": 1e-2,
    }


def test_a_metric_is_a_key_of_the_last_step_of_a_step_or_of_the_result(stand_in, two, tmp_path):
    compare(two, tmp_path / "out", grid="1e-2", seeds="1")
    folder = next((tmp_path / "out" / "runs").iterdir())
    run = PlannedRun("a", 1e-2, 0, make_arm("a", two[0]).recipe, folder)
    assert value(run, "grad_norm@1") == 0.5
    assert value(run, "peak_memory_bytes") == 2**20
    for metric in ("nothing", "eval_loss@1", "eval_loss@7"):
        with pytest.raises(LrftError, match=f"no number {metric}"):
            value(run, metric)


def test_the_report_says_how_it_came_about(stand_in, two, tmp_path):
    compare(two, tmp_path / "out", by="params")
    text = (tmp_path / "out" / "report.md").read_text()
    assert "Ranks changed, alpha as written: b 6 -> 4" in text
    assert "seed 1000, which no other number uses" in text
    assert "lrft 0" in text


def test_without_matplotlib_the_report_says_so(stand_in, two, tmp_path, monkeypatch):
    monkeypatch.setattr("lrft.lab.compare.plot.can_draw", lambda: False)
    compare(two, tmp_path / "out", grid="1e-2", seeds="1")
    assert "No plot: matplotlib is not installed." in (tmp_path / "out" / "report.md").read_text()


def test_with_matplotlib_there_is_a_plot(stand_in, two, tmp_path):
    pytest.importorskip("matplotlib")
    _, record = compare(two, tmp_path / "out")
    assert draw(record, tmp_path / "plot.png")
    assert (tmp_path / "plot.png").stat().st_size > 1000


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"by": "flops"}, "choose params or memory or steps"),
        ({"grid": "x"}, "--lr-grid"),
        ({"seeds": "0"}, "--seeds"),
    ],
)
def test_a_flag_that_makes_no_sense_is_refused_before_anything_runs(two, tmp_path, settings, message):
    with pytest.raises(UsageError, match=message):
        compare(two, tmp_path / "out", **settings)
    assert not (tmp_path / "out").exists()


def test_two_recipes_are_trained_and_compared_by_the_command(recipe, tmp_path, monkeypatch):
    """No stand-in: processes of `lrft train` on the tiny model, at equal seeds on the same rows."""
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    app = typer.Typer()
    app.command()(compare_command)
    out = tmp_path / "out"
    arguments = [
        recipe("a"),
        recipe("b", "{method: dora, rank: 4, alpha: 8}"),
        "train.max_steps=2",
        "--out",
        out,
    ]
    arguments += ["--lr-grid", "1e-2", "--seeds", "1", "--jobs", "2"]
    done = CliRunner().invoke(app, [str(argument) for argument in arguments], catch_exceptions=False)
    assert done.exit_code == 0
    head, *arms = done.stdout.splitlines()
    assert head.split()[:3] == ["arm", "rank", "rate"]
    assert [line.split()[0] for line in arms] == ["a", "b"]
    record = json.loads((out / "report.json").read_text())
    tokens = []
    for arm in record["arms"]:
        folder = next(out.glob(f"runs/{arm['label']}-*"))
        lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
        assert arm["losses"] == [lines[-1]["eval_loss"]]
        assert arm["trained"] == arm["trainable"]
        tokens.append([line["tokens"] for line in lines])
    assert len(tokens[0]) == 2
    assert tokens[0] == tokens[1]
    assert record["environments"][0]["hardware"]["torch_threads"] == 1


def test_a_rank_that_matching_blows_up_is_named_before_anything_runs():
    def said(before, rank):
        return blown_up([Matched("vera", rank, before, 100, 1000)])

    assert said(256, 16 * 256) == said(None, 8) == said(8, None) == []
    (line,) = said(256, 10_889)
    assert line.startswith("vera: rank 10,889 is 43 times what its recipe has") and "--match steps" in line


def test_every_seed_of_every_arm_is_a_row_of_the_csv():
    arm = {"label": "a", "rank": None, "rate": 0.1, "losses": [1.5, None], "trainable": 7, "run_seconds": 2.0}
    record = {"metric": "eval_loss", "seeds": [0, 5], "arms": [{**arm, "peak_memory_bytes": None}]}
    heads, *rows = seeds_table(record)
    assert heads == [
        "arm",
        "rank",
        "rate",
        "seed",
        "eval_loss",
        "trainable",
        "run_seconds",
        "peak_memory_bytes",
    ]
    assert rows == [["a", "", 0.1, 0, 1.5, 7, 2.0, ""], ["a", "", 0.1, 5, "", 7, 2.0, ""]]
