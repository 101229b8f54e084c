"""Two tasks one after the other in one run: the rows of each step, what is scored and forgotten, and resuming."""

from __future__ import annotations

import json
import math
from itertools import chain
from types import SimpleNamespace

import pytest
import torch

from lrft.api.merging.merge import merge
from lrft.api.opening.open_run import open_run
from lrft.api.planning.plan import plan
from lrft.api.training.train import train
from lrft.build.dataset import read_text
from lrft.build.steps import first_rows
from lrft.core.adapted import adapted
from lrft.data.encoded import Encoded
from lrft.data.mix import Mixture, Wanted
from lrft.data.steps import TrainData
from lrft.data.tasks import TasksInTurn
from lrft.lab.report.page import page_of
from lrft.lab.report.read import find_runs, read_runs
from lrft.lab.report.tasks import tasks
from lrft.recipe.load import load_recipe
from lrft.registry.errors import DataError, Interrupted, RecipeError
from lrft.training.checkpoint import read_adapter
from lrft.training.folder import RESULT, RunFolder
from lrft.training.task_scores import TaskScores, backward_transfer, forgetting, forward_transfer
from tests.training.unbroken import goes_on_unbroken, same, stop_at

RECIPE = """
model: {{name: {model}, dtype: float32}}
data:
  train: [a.jsonl, b.jsonl]
  eval: [c.jsonl, d.jsonl]
  mix: {{order: in_turn}}
  format: prompt_completion
train: {{max_steps: 6, batch_size: 2, max_length: 64, device: cpu, save_every: 2, keep_last: 9}}
adapter: {{method: osf, directions: 8}}
optimizer: {{method: adamw, lr: 0.003}}
restart: each_task
"""


@pytest.fixture(scope="module")
def recipe(tiny, tmp_path_factory):
    """`recipe(overrides...)` -> two tasks, of 4 and of 8 rows, for the tiny model."""
    folder = tmp_path_factory.mktemp("tasks")
    for name, count in (("a", 4), ("b", 8), ("c", 2), ("d", 3)):
        word = {"a": "one", "c": "one"}.get(name, "two")
        rows = [{"prompt": f"{word} asks {k}", "completion": f" {word} is {k * 7}"} for k in range(count)]
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    path = folder / "recipe.yaml"
    path.write_text(RECIPE.format(model=tiny()))
    return lambda *overrides: load_recipe(path, list(overrides))


@pytest.fixture(scope="module")
def learnt(recipe, tmp_path_factory):
    """The run of both tasks."""
    folder = tmp_path_factory.mktemp("learnt") / "run"
    train(recipe(), folder)
    return folder


def lines_of(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def made(sizes, steps=None, epochs=None, weights=None, batch_size=2):
    """Tasks of so many rows, and of each step the rows that it has."""
    rows = [Encoded([0, 1, 2], [False, True, True]) for _ in range(sum(sizes))]
    members = [list(range(sum(sizes[:k]), sum(sizes[: k + 1]))) for k in range(len(sizes))]
    wanted = [Wanted(f"s{k}", None if weights is None else weights[k]) for k in range(len(sizes))]
    mixture = Mixture(wanted, members, 1.0, "together", 3)
    settings = {"batch_size": batch_size, "accumulation": 1, "max_length": 8, "seed": 3, "pad_id": 0}
    tasks = [TrainData(rows, packing=False, **settings, mixture=mixture.only(k)) for k in mixture.places]
    data = TasksInTurn(tasks, mixture)
    total = data.total_steps(steps, epochs)
    seen = [
        sorted(k for batch in data.at(step).micro_batches for k in batch.examples) for step in range(total)
    ]
    return data, seen


def test_every_step_has_rows_of_one_task_and_each_task_is_seen_whole():
    data, seen = made([4, 5], epochs=2)
    assert data.ends == [4, 10]
    assert sorted(chain(*seen[:2])) == sorted(chain(*seen[2:4])) == [0, 1, 2, 3]
    assert sorted(chain(*seen[4:7])) == sorted(chain(*seen[7:])) == [4, 5, 6, 7, 8]
    assert [round(data.at(k).epoch, 2) for k in (3, 4, 9)] == [2.0, 0.33, 2.0]
    told = [k for micro_batch in data.layout(0) for row in micro_batch for k in row]
    assert sorted(told[:4]) == [0, 1, 2, 3] and sorted(told[4:]) == [4, 5, 6, 7, 8]


def test_the_layout_tells_the_steps_that_its_micro_batches_are_of():
    data, seen = made([4, 5], epochs=2)
    rows = [[k for row in micro_batch for k in row] for micro_batch in data.layout(0)]
    steps = [data.place_of(k)[0] for k in range(len(rows))]
    assert steps == [0, 1, 4, 5, 6] and [sorted(row) for row in rows] == [seen[step] for step in steps]


def test_what_is_measured_before_training_sees_no_row_of_a_later_task(recipe):
    loaded = recipe().recipe
    text = read_text(loaded)
    assert first_rows(loaded, text).visits(0) == [0, 1, 2, 3] and len(text.mixture.visits(0)) == 12


def test_steps_are_shared_out_by_rows_or_by_weights():
    assert made([4, 8], steps=6)[0].ends == [2, 6]
    assert made([4, 8], steps=6, weights=[1.0, 1.0])[0].ends == [3, 6]
    assert made([4, 8], steps=6, epochs=0.5)[0].ends == [1, 3]
    with pytest.raises(DataError, match=r"of 2 steps none is of task s0.*more steps"):
        made([1, 30], steps=2)


def test_a_run_scores_every_task_before_and_after_each(learnt):
    result = RunFolder(learnt).read(RESULT)["tasks"]
    assert result["names"] == ["a", "b"] and result["ends"] == [2, 6]
    before, first, last = result["losses"]
    assert first[0] < before[0] and last[1] < first[1], "each task lowers its own loss"
    assert result["backward_transfer"] == first[0] - last[0]
    assert result["forward_transfer"] == before[1] - first[1]
    assert result["forgetting"] == {"a": max(0.0, last[0] - first[0])}
    scored = {line["step"]: line for line in lines_of(learnt) if "task_loss/a" in line}
    assert list(scored) == [2, 6]
    assert [scored[2]["task_loss/a"], scored[2]["task_loss/b"]] == first
    assert scored[6]["backward_transfer"] == result["backward_transfer"]
    assert scored[2]["restarts"] == 1 and "restarts" not in scored[6]


def test_a_dry_run_and_a_run_tell_which_steps_are_whose(recipe, learnt, tmp_path, capsys):
    assert plan(recipe())["tasks"] == {"a": 2, "b": 6} and "tasks" not in plan(
        recipe("data.mix.order=mixed", "restart=null")
    )
    train(recipe("train.max_steps=3"), tmp_path / "run")
    assert "tasks in turn: a in steps 1 to 1, b in steps 2 to 3; all are scored" in capsys.readouterr().err


def test_the_rate_runs_through_its_schedule_in_every_task(learnt):
    rates = [line["lr"] for line in lines_of(learnt)]
    assert rates[0] == rates[2] == 0.003 and rates[1] < rates[0] and rates[5] < rates[4] < rates[3] < rates[2]


@pytest.mark.parametrize("cut", [2, 4])
def test_a_run_resumes_to_the_byte_across_the_border(learnt, recipe, tmp_path, cut):
    goes_on_unbroken(recipe(), learnt, cut, tmp_path / "cut")
    assert RunFolder(tmp_path / "cut").read(RESULT)["tasks"] == RunFolder(learnt).read(RESULT)["tasks"]


def test_scores_that_a_signal_cut_short_at_the_border_are_taken_on_resuming(
    learnt, recipe, tmp_path, monkeypatch
):
    with monkeypatch.context() as patch:
        stop_at(patch, 2)
        with pytest.raises(Interrupted):
            train(recipe(), tmp_path / "run")
    assert "task_loss/a" not in lines_of(tmp_path / "run")[-1]
    train(recipe(), tmp_path / "run", resume=True)
    same(tmp_path / "run", learnt)


def test_osf_decomposes_what_the_first_task_left_and_guards_it(learnt):
    _, _, adaptation = open_run(RunFolder(learnt), scores=True)
    for _, site in adapted(adaptation.model.hf):
        held, now = site.adapter, site.base.weight().float()
        k = min(now.shape) - 8
        U, S, V = torch.linalg.svd(now, full_matrices=False)
        torch.testing.assert_close(held.S_0, S[k:], atol=1e-5, rtol=1e-4)
        change = held.change()
        assert change.abs().max() > 1e-5
        assert (U[:, :k].mT @ change @ V[:k].mT).abs().max() < 1e-5 * max(1.0, float(S[0]))
        pretrained = torch.linalg.svdvals(site.base.pretrained_weight())[k:]
        assert not torch.allclose(pretrained, held.S_0, atol=1e-6), "the border changed nothing"


def test_the_report_has_the_losses_and_what_was_forgotten(learnt):
    result = RunFolder(learnt).read(RESULT)["tasks"]
    table = tasks(read_runs(find_runs([learnt])))
    assert table.heads == ("run", "after", "a", "b", "backward transfer")
    assert [row[1] for row in table.rows] == ["before training", "a", "b", "forgetting"]
    assert table.rows[2][2:] == tuple(f"{x:.4f}" for x in (*result["losses"][2], result["backward_transfer"]))
    assert table.rows[3][2:] == (f"{result['forgetting']['a']:.4f}", "-", "-")
    assert "Tasks, one after the other" in page_of(read_runs(find_runs([learnt])))


@pytest.mark.slow
@pytest.mark.usefixtures("short_answers")
def test_both_tasks_are_in_the_merged_model(learnt, tmp_path):
    assert merge(learnt, tmp_path / "merged")["kl_mean"] < 1e-3


@pytest.mark.slow
def test_one_adapter_may_go_on_through_all_tasks(recipe, tmp_path):
    lora = "adapter={method: lora, rank: 4}"
    kept = train(recipe(lora, "restart={method: each_task, change: kept}"), tmp_path / "kept")["tasks"]
    alone = train(recipe(lora, "restart=null"), tmp_path / "alone")["tasks"]
    assert kept["losses"][0] == alone["losses"][0] and kept["losses"][2] != alone["losses"][2]
    checkpoint = tmp_path / "kept" / "checkpoints" / "step-6"
    assert not any(".change." in name for name in read_adapter(checkpoint)), "nothing was moved into the base"


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("data.eval=c.jsonl", r"data\.eval: has 1 sources of held-out rows.*each of 2 tasks"),
        ("data.train=a.jsonl", r"data\.mix\.order: is about several sources"),
        ("data.mix.order=mixed", r"restart\.method: there is one task"),
        (
            "train.extended=[{steps: 2, rate: held}]",
            r"train\.extended: cannot be: the tasks of data\.mix\.order",
        ),
        ("train.stop_below=1.0", r"train\.stop_below: could end a run before its last task"),
    ],
)
def test_what_leaves_a_task_out_is_refused(recipe, override, said):
    with pytest.raises(RecipeError, match=said):
        recipe(override)


def test_tasks_may_hold_out_rows_of_their_own(recipe, tmp_path):
    found = train(recipe("~data.eval", "data.split=4", "train.max_steps=3"), tmp_path / "run")["tasks"]
    assert len(found["losses"]) == 3 and all(map(math.isfinite, chain(*found["losses"])))


LOSSES = [[5.0, 6.0, 7.0], [1.0, 5.5, 7.0], [2.0, 1.0, 6.0], [1.5, 3.0, 0.5]]


def test_transfer_and_forgetting_are_those_of_the_matrix():
    """By hand: of three tasks, the rows being the losses before training and after each."""
    assert backward_transfer(LOSSES) == ((1.0 - 1.5) + (1.0 - 3.0)) / 2
    assert forgetting(LOSSES) == [0.5, 2.0]
    assert forward_transfer(LOSSES) == ((6.0 - 5.5) + (7.0 - 6.0)) / 2
    assert backward_transfer(LOSSES[:2]) is None and forgetting(LOSSES[:2]) == []
    assert forgetting([*LOSSES[:3], [0.5, 0.5, 0.5]]) == [0.0, 0.0]


def test_a_run_that_is_stopped_before_its_first_score_begins_again():
    run = SimpleNamespace(step=0, stop_signal=2, model=torch.nn.Linear(1, 1))
    with pytest.raises(Interrupted, match="no step was made yet"):
        TaskScores(lambda run: None).start(run)
