"""The board of methods on one task: runs that go on where they stopped, and a page that says what was not run."""

from __future__ import annotations

import json

import pytest

import board
import board_entries
import board_page
import svg_plot
from board_steps import Stepped
from lrft.api.training.train import train
from lrft.core.notes import restored
from lrft.recipe.load import load_recipe
from lrft.registry.errors import Interrupted, LrftError, NumericalError


@pytest.fixture(autouse=True)
def quiet():
    with restored():
        yield


def test_the_board_runs_rates_seeds_and_time_and_goes_on_where_it_stopped(tmp_path, capsys):
    arguments = ["--smoke", "--out", str(tmp_path / "out"), "--methods", "adapter=dora"]
    assert board.main(arguments) == 0
    lines = board.read(tmp_path / "out" / "board.jsonl")
    assert [line["kind"] for line in lines] == ["tune"] * 3 + ["score"] * 2 + ["time"]
    tuned, scored = lines[:3], lines[3:5]
    assert {line["seed"] for line in tuned} == {1000} and [line["seed"] for line in scored] == [0, 1]
    best = min(tuned, key=lambda line: line["loss"])["rate"]
    assert {line["rate"] for line in scored} == {best} and all("exact_match" in line for line in scored)
    assert all(line["trainable"] == scored[0]["trainable"] > 0 for line in lines[:5])
    assert not list((tmp_path / "out" / "runs").glob("*/checkpoints"))
    before = [line for line in lines if line["kind"] != "time"]
    again = tmp_path / "out" / "board.jsonl"
    again.write_text("".join(json.dumps(line) + "\n" for line in lines[:2]) + '{"key": "adapter=do')
    assert board.main([*arguments, "--budget-minutes", "0"]) == 0
    assert "no room for another run" in capsys.readouterr().out
    row = next(
        x for x in (tmp_path / "out" / "board.md").read_text().splitlines() if x.startswith("| `dora`")
    )
    assert "not run yet (2 of 3 rates tried)" in row
    assert len(before) == 5 and board.read(again) == lines[:2]


def test_runs_that_may_stand_beside_each_other_are_begun_together(tmp_path):
    """The rates of a method, then its seeds; those that are finished are not begun again."""
    made, begun = board._board(True, tmp_path, 3, None), []

    def finish(runs) -> None:
        begun.append(len(runs))
        board._here(runs)

    made.finish = finish
    found = board_entries.entry("adapter=lora", made.base, [], made.steps)
    board._beside(made, found, [(found.rates[0], board.TUNING_SEED), (found.rates[0], 0)])
    board._beside(made, found, [(rate, board.TUNING_SEED) for rate in found.rates])
    board._beside(made, found, [(found.rates[1], board.TUNING_SEED)])
    assert begun == [2, 2]


@pytest.mark.slow
def test_the_board_beside_each_other_as_processes_is_that_of_one_at_a_time(tmp_path, capsys):
    """Through the executors that sweeps run on."""
    losses = []
    for name, more in (("alone", []), ("beside", ["--jobs", "3"])):
        out = tmp_path / name
        arguments = ["--smoke", "--out", str(out), "--methods", "adapter=lora"]
        assert board.main([*arguments, *more]) == 0
        lines = board.read(out / "board.jsonl")
        losses.append([(line["kind"], line["rate"], line["seed"], line["loss"]) for line in lines[:5]])
        assert (out / "logs").is_dir() == bool(more)
    assert losses[0] == losses[1] and len({line[-1] for line in losses[0]}) == 5
    for wrong in (["--cluster", "slurn"], ["--cluster-set", "num_cpus=1"]):
        with pytest.raises(SystemExit):
            board.main([*arguments, *wrong])
        assert "--cluster" in capsys.readouterr().err


def test_every_method_of_the_board_has_a_recipe_on_the_task():
    """On NF4 where that is possible; what mixes adapters is given some first; the task has no features of rows."""
    found = {key: board_entries.entry(key, [], ["a", "b"]) for key in board_entries.methods()}
    assert {key for key, one in found.items() if one.arm is None} == {"adapter=flix", "restart=each_task"}
    assert "data.features" in found["adapter=flix"].said
    assert found["adapter=lora"].storage == "nf4" and found["optimizer=galore"].storage == "none"
    assert found["adapter=lora"].arm.recipe.adapter.rank == 16 and found["adapter=lora"].rates[1] == 1e-3
    assert found["allocate=adalora"].arm.recipe.adapter.method == "svd_lora"
    assert all(one.arm.recipe.train.max_steps == 54 for one in found.values() if one.arm is not None)


def test_the_board_page_says_what_was_not_run_and_plots_what_was():
    lines = [
        {"key": "adapter=lora", "kind": "tune", "rate": rate, "seed": 1000, "loss": 1.0, "version": "1"}
        for rate in (1, 2, 4)
    ]
    lines[1]["peak_memory_bytes"] = 3 * 2**20  # of training alone, and not of answers
    made = {"key": "adapter=lora", "kind": "score", "storage": "nf4", "settings": "smoke", "rate": 4}
    costs = {"trainable": 1000, "peak_memory_bytes": 2**21, "adapter_bytes": 2**12}
    lines += [
        {**made, **costs, "seed": s, "loss": 0.5 + s, "exact_match": 0.25, "version": "1"} for s in (0, 1)
    ]
    lines.append({**made, "kind": "time", "ratio": 1.5, "seconds": [0.3, 0.2], "version": "1"})
    lines.append({"key": "init=b", "kind": "refused", "said": "it cannot", "version": "1"})
    files = board_page.files(lines, ["adapter=lora", "adapter=a", "init=b"], "1")
    page = files["board.md"]
    assert (
        "| `lora` | nf4\\* | 4! | 0.25, 0.25 | 0.500, 1.500 | 1.50 (0.30 and 0.20 s) | 3 | 1,000 | 4 |"
        in page
    )
    assert "| `a` | not run yet |" in page and "| `b` | refused: it cannot |" in page
    assert "1 of 3 methods" in page and set(files) == {"board.md", "board-memory.svg", "board-time.svg"}
    assert files["board-time.svg"].count("<circle") == 1 and ">lora<" in files["board-time.svg"]
    assert set(board_page.files(lines, ["adapter=lora"], "2")) == {"board.md"}  # of another version: not run
    with pytest.raises(ValueError, match="points"):
        svg_plot.point_plot({}, "x", "y")


def test_the_committed_board_is_what_its_record_says(capsys):
    assert board.main(["--check"]) == 0


def test_steps_taken_in_turn_are_those_of_a_training(tiny, tmp_path):
    """Dropout included: what one side draws is no business of the other."""
    small = [f"model.name={tiny()}", "data.train.limit=12", "eval.tasks=[]", "train.device=cpu"]
    names = ("lora", "rslora")
    loaded = [load_recipe(f"smoke/{name}", small) for name in names]
    sides = [Stepped(name, one.recipe, tmp_path / name) for name, one in zip(names, loaded, strict=True)]
    losses = [[side.step(None) for side in sides] for _ in range(3)]
    with pytest.raises(StopIteration):
        sides[0].step(None)
    for side in sides:
        side.leave()
    train(loaded[0], tmp_path / "whole", resume=False)
    lines = (tmp_path / "whole" / "metrics.jsonl").read_text().splitlines()
    assert [pair[0] for pair in losses] == [json.loads(line)["loss"] for line in lines]


def test_what_a_step_raises_reaches_whoever_asked_for_it(tiny, tmp_path, monkeypatch):
    small = [f"model.name={tiny()}", "data.train.limit=12", "eval.tasks=[]", "train.device=cpu"]
    side = Stepped("lora", load_recipe("smoke/lora", small).recipe, tmp_path / "run")

    def fail(*_: object) -> None:
        raise NumericalError("no number")

    monkeypatch.setattr("lrft.training.loop.step_loss", fail)
    with pytest.raises(NumericalError, match="no number"):
        side.step(None)
    side.leave()


@pytest.mark.parametrize(
    ("error", "recorded"),
    [(NumericalError("loss nan"), True), (LrftError("ended with signal 9"), False)],
)
def test_what_would_happen_again_is_recorded_and_what_was_killed_is_tried_again(
    tmp_path, capsys, error, recorded
):
    made = board._board(True, tmp_path, 1, None)

    def fail(_: object) -> None:
        raise error

    made.finish = fail
    board.fill(made, "restart=relora")
    assert [line["said"] for line in board.read(made.record)] == ([str(error)] if recorded else [])
    assert str(error) in capsys.readouterr().out


def test_an_interruption_leaves_no_line_and_the_page_is_written(tmp_path, monkeypatch):
    def stop(*_: object) -> None:
        raise Interrupted(2, "stopped")

    monkeypatch.setattr(board, "fill", stop)
    assert board.main(["--smoke", "--out", str(tmp_path), "--methods", "adapter=lora"]) == 130
    assert (tmp_path / "board.md").is_file() and not (tmp_path / "board.jsonl").exists()
