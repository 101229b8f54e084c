"""Which score says what the best step is, when waiting for a better one ends, and tasks that are scored meanwhile."""

from __future__ import annotations

import gc
import json
import math
import shutil
from pathlib import Path

import pytest
import torch

from lrft.api.asking.evaluate import evaluate
from lrft.api.training.train import train
from lrft.evaluation import generate as generating
from lrft.recipe.inside_sections import Extension
from lrft.recipe.load import load_recipe
from lrft.recipe.resolved import recipe_hash
from lrft.registry.axes import TASKS
from lrft.registry.errors import DataError, Interrupted, RecipeError, UsageError
from lrft.training.scorer import Metric, Scorer, Timed
from tests.training.unbroken import losses, same, stop_at

SHORT = [
    "train.eval_every=2",
    "train.save_every=3",
    "train.keep_last=9",
    "eval.limit=2",
    "train.max_steps=12",
]
WORSE = {2: 3.0, 4: 1.0, 6: math.nan, 8: 1.0, 10: 0.5, 12: 0.4}  # two scores in a row are no better by step 8
TASK = "eval.tasks=[loss, {method: exact_match, max_new_tokens: 4}]"


def scripted(run, batches) -> dict[str, float] | None:
    return None if run.stop_signal is not None else {"eval_loss": WORSE[run.step]}


@pytest.fixture
def scores(monkeypatch):
    monkeypatch.setattr("lrft.build.scoring._loss", scripted)


def lines(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.parametrize(("higher", "better"), [(False, 1.0), (True, 3.0)])
def test_a_metric_has_a_direction_and_numbers_that_are_none_never_win(higher, better):
    metric = Metric("x", higher)
    assert metric.improves(2.0, None) and metric.improves(better, 2.0)
    assert not metric.improves(2.0, 2.0) and not metric.improves(4.0 - better, 2.0)
    for value in (math.nan, math.inf, -math.inf):
        assert not metric.improves(value, None) and not metric.improves(value, 2.0)


@pytest.fixture(scope="module")
def ended(tiny_recipe, tmp_path_factory):
    folder = tmp_path_factory.mktemp("ended")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("lrft.build.scoring._loss", scripted)
        result = train(load_recipe(tiny_recipe(folder), [*SHORT, "train.patience=2"]), folder / "run")
    return folder / "run", result


def test_a_run_that_has_not_improved_for_long_enough_ends_and_says_why(ended, tiny_recipe, tmp_path, scores):
    folder, result = ended
    assert (result["step"], result["best_checkpoint"], result["best_eval_loss"]) == (
        8,
        "checkpoints/step-4",
        1.0,
    )
    assert result["stopped_early"] == (
        "train.patience: eval_loss has not improved on 1 of step 4 in 2 scores"
    )
    assert [line["step"] for line in lines(folder)] == list(range(1, 9))
    assert (folder / "checkpoints" / "step-8").is_dir()
    whole = train(load_recipe(tiny_recipe(tmp_path), SHORT), tmp_path / "run")
    assert (whole["step"], whole["best_eval_loss"]) == (12, 0.4) and "stopped_early" not in whole
    assert [one["loss"] for one in lines(tmp_path / "run")[:8]] == [one["loss"] for one in lines(folder)]


@pytest.mark.parametrize("step", [6, 8])
def test_an_interruption_does_not_move_the_end(ended, tiny_recipe, tmp_path, monkeypatch, scores, step):
    """Before a score that is due, and before the one that ends the run."""
    whole, result = ended
    loaded = load_recipe(tiny_recipe(tmp_path), [*SHORT, "train.patience=2"])
    with monkeypatch.context() as patch:
        stop_at(patch, step)
        with pytest.raises(Interrupted):
            train(loaded, tmp_path / "run")
    again = train(loaded, tmp_path / "run", resume=True)
    same(tmp_path / "run", whole)
    assert again["stopped_early"] == result["stopped_early"] and again["step"] == 8
    # Killed after the last checkpoint and before the result: nothing is trained on top.
    (tmp_path / "run" / "result.json").unlink()
    assert train(loaded, tmp_path / "run", resume=True)["stopped_early"] == result["stopped_early"]
    same(tmp_path / "run", whole)


@pytest.mark.parametrize("length", [12, 8])
def test_what_patience_ended_is_not_made_longer(ended, tiny_recipe, tmp_path, scores, length):
    """Also where the step at which it ended was the last one anyway."""
    folder = Path(shutil.copytree(ended[0], tmp_path / "run"))
    if length == 8:
        loaded = load_recipe(tiny_recipe(tmp_path), [*SHORT, "train.patience=2", "train.max_steps=8"])
        assert "stopped_early" not in train(loaded, tmp_path / "whole")
        folder = tmp_path / "whole"
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    with pytest.raises(
        UsageError, match=r"train\.patience ended .* at step 8, .*model\.adapter=.*more patience"
    ):
        train(folder, resume=True, added=Extension(steps=4))
    assert before == {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_run_whose_patience_lasted_is_made_longer_and_goes_on_counting(tiny_recipe, tmp_path, scores):
    """To the bytes and the end of the longer recipe trained from the start."""
    loaded = load_recipe(tiny_recipe(tmp_path), [*SHORT, "train.patience=2", "train.max_steps=6"])
    assert train(loaded, tmp_path / "run")["step"] == 6
    again = train(tmp_path / "run", resume=True, added=Extension(steps=6))
    assert again["step"] == 8 and "eval_loss has not improved on 1 of step 4" in again["stopped_early"]


def test_what_scores_are_taken_on_cannot_change_while_they_are_compared(ended, tiny_recipe, tmp_path, scores):
    folder = Path(shutil.copytree(ended[0], tmp_path / "run"))
    (folder / "result.json").unlink()
    with pytest.raises(UsageError, match=r"eval.limit: 2 -> 3"):
        train(
            load_recipe(tiny_recipe(tmp_path), [*SHORT, "train.patience=2", "eval.limit=3"]),
            folder,
            resume=True,
        )
    free = [*SHORT, "train.patience=2", "eval.batch_tokens=999"]
    assert train(load_recipe(tiny_recipe(tmp_path), free), folder, resume=True)["step"] == 8


def test_the_step_that_patience_makes_the_last_has_every_score():
    """A score with another rhythm is due there too, and a signal in the middle of them owes them all."""

    class Stub:
        step, total_steps, metrics = 3, 100, {}
        model = torch.nn.Module()

        @property
        def at_an_end(self):
            return self.step == self.total_steps

        def record(self, **found):
            self.metrics.update(found)

    run, stopped = Stub(), [True]
    tasks = Timed(10, lambda run: None if stopped[0] else {"task.score": 0.5})
    scorer = Scorer([Timed(3, lambda run: {"eval_loss": 2.0}), tasks], lambda run: None, patience=1)
    scorer.best, scorer.best_step = 1.0, 1
    scorer.after_step(run)
    assert (scorer.owed, scorer.since, run.total_steps, run.metrics) == (3, 0, 100, {})
    stopped[0] = False
    scorer.start(run)
    assert (scorer.owed, scorer.since, run.total_steps) == (0, 1, 3)
    assert run.metrics == {"eval_loss": 2.0, "task.score": 0.5}


def test_the_best_step_may_be_that_of_a_task(tiny_recipe, tmp_path, monkeypatch):
    """Scores of a task are higher where they are better; the best loss is elsewhere."""
    found = {2: 0.1, 4: 0.5, 6: 0.5, 8: 0.2}

    def answered(recipe, subject, known):
        return {"loss.loss": 1.0, "exact_match.exact_match": found[step[0]]}

    step = [0]
    monkeypatch.setattr("lrft.build.scoring._tasks", answered)
    monkeypatch.setattr(Scorer, "after_step", counted(step, Scorer.after_step))
    asked = ["train.eval_tasks_every=2", "train.metric=exact_match.exact_match", "train.patience=2"]
    result = train(load_recipe(tiny_recipe(tmp_path), [*SHORT, TASK, *asked]), tmp_path / "run")
    assert (result["step"], result["best_checkpoint"]) == (8, "checkpoints/step-4")
    assert result["best_exact_match.exact_match"] == 0.5 and "best_eval_loss" not in result
    assert "exact_match.exact_match has not improved on 0.5 of step 4 in 2 scores" in result["stopped_early"]
    assert json.loads((tmp_path / "run" / "best" / "checkpoint.json").read_text()) == {
        "step": 4,
        "exact_match.exact_match": 0.5,
    }


def counted(step, after_step):
    def wrapped(self, run):
        step[0] = run.step
        after_step(self, run)

    return wrapped


@pytest.fixture(scope="module")
def tasked(tiny_recipe, tmp_path_factory):
    """A run that scores two tasks every third step, and the same run without."""
    folder = tmp_path_factory.mktemp("tasked")
    six = [*SHORT, "train.max_steps=6", TASK]
    train(load_recipe(tiny_recipe(folder), [*six, "eval.at_end=false"]), folder / "plain")
    more = ["train.eval_tasks_every=3", "eval.at_end=true"]
    train(load_recipe(tiny_recipe(folder), [*six, *more]), folder / "run")
    return folder


def test_tasks_in_a_training_leave_its_losses_and_bytes_alone(tasked):
    for name in ("run", "plain"):
        kept = [{k: line[k] for k in ("step", "loss", "grad_norm", "lr")} for line in lines(tasked / name)]
        assert kept == [
            {k: line[k] for k in ("step", "loss", "grad_norm", "lr")} for line in lines(tasked / "plain")
        ]
    for name in ("adapter/adapter_model.safetensors", "checkpoints/step-6/adapter.safetensors"):
        assert (tasked / "run" / name).read_bytes() == (tasked / "plain" / name).read_bytes()
    optimizer = "checkpoints/step-6/optimizer.safetensors"
    assert (tasked / "run" / optimizer).read_bytes() == (tasked / "plain" / optimizer).read_bytes()


def test_scores_of_tasks_stand_in_the_lines_of_their_steps(tasked):
    names = {"loss.loss", "loss.perplexity", "exact_match.exact_match", "exact_match.stopped"}
    scored = [line for line in lines(tasked / "run") if names & line.keys()]
    assert [line["step"] for line in scored] == [3, 6] and all(names <= line.keys() for line in scored)
    assert scored[1]["loss.loss"] == pytest.approx(lines(tasked / "run")[-1]["eval_loss"], rel=1e-6)
    assert not any(names & line.keys() for line in lines(tasked / "plain"))


def test_scores_at_the_end_are_those_of_the_command(tasked, tmp_path):
    """The files too; and without the setting there are none."""
    written = json.loads((tasked / "run" / "eval" / "adapter.json").read_text())
    found = evaluate(Path(shutil.copytree(tasked / "run", tmp_path / "run")))
    assert json.loads((tmp_path / "run" / "eval" / "adapter.json").read_text()) == written
    result = json.loads((tasked / "run" / "result.json").read_text())
    metrics = {task: one.metrics for task, one in found["adapter"].items()}
    assert result["scores"] == metrics and metrics.keys() == {"loss", "exact_match"}
    assert not (tasked / "plain" / "eval").exists()


@pytest.mark.parametrize(
    ("asked", "scored"),
    [
        ([TASK], {"loss", "exact_match"}),
        (["eval.tasks=[]"], {"loss"}),
        ([TASK, "eval.at_end=false"], set()),
        ([TASK, "train.eval_tasks_every=2"], set()),  # its last step has them
        (["eval.tasks=[]", "train.eval_every=2"], set()),
        ([TASK, "train.eval_tasks_every=2", "eval.at_end=true"], {"loss", "exact_match"}),
        (["eval.tasks=[]", "~data.eval"], set()),
    ],
)
def test_a_run_is_scored_at_its_end_unless_its_last_step_has_the_scores(tiny_recipe, tmp_path, asked, scored):
    short = ["~train.eval_every", "train.max_steps=2", "eval.limit=2", *asked]
    found = train(load_recipe(tiny_recipe(tmp_path), short), tmp_path / "run")
    assert set(found.get("scores", {})) == scored
    assert (tmp_path / "run" / "eval" / "adapter.json").is_file() == bool(scored)


def test_a_task_that_cannot_be_scored_is_refused_before_the_first_step(tiny_recipe, tmp_path):
    task = ["eval.tasks=[gsm8k]", "train.eval_tasks_every=2"]
    with pytest.raises(DataError, match="the reference has no number after"):
        train(load_recipe(tiny_recipe(tmp_path), [*SHORT, *task]), tmp_path / "run")
    assert not (tmp_path / "run" / "metrics.jsonl").exists()
    left_out = r"or train without the scores by eval\.at_end=false$"
    with pytest.raises(DataError, match=left_out):
        train(load_recipe(tiny_recipe(tmp_path), [*SHORT, "eval.tasks=[gsm8k]"]), tmp_path / "again")
    without = ["~train.eval_every", "train.max_steps=2", "~data.eval"]
    with pytest.raises(RecipeError, match=r"^data.eval: no held-out rows for loss.*" + left_out):
        train(load_recipe(tiny_recipe(tmp_path), without), tmp_path / "none")


def test_what_is_tried_before_the_first_step_takes_few_tokens(tiny_recipe, tmp_path, monkeypatch):
    asked = []
    settings = generating.greedy_settings
    monkeypatch.setattr(
        generating, "greedy_settings", lambda most, *rest: asked.append(most) or settings(most, *rest)
    )
    task = "eval.tasks=[{method: exact_match, max_new_tokens: 20}]"
    train(load_recipe(tiny_recipe(tmp_path), ["train.max_steps=2", "eval.limit=2", task]), tmp_path / "run")
    assert asked[0] == 2 and set(asked[1:]) == {20}


def test_a_first_row_with_nothing_to_score_is_left_out(tiny_recipe, tmp_path):
    rows = tmp_path / "rows.jsonl"
    pairs = [("many", "many " * 400), ("how many", "two")]
    rows.write_text("".join(json.dumps({"prompt": p, "completion": c}) + "\n" for p, c in pairs))
    short = ["~train.eval_every", "train.max_steps=2", "data.too_long=drop", "train.max_length=128"]
    loaded = load_recipe(tiny_recipe(tmp_path), [*short, f"data.eval={rows}"])
    scores = train(loaded, tmp_path / "run")["scores"]
    assert scores["loss"]["left_out"] == 1 and scores["loss"]["loss"] > 0


def test_scores_that_fail_at_the_end_leave_a_run_that_can_be_finished(tiny_recipe, tmp_path, monkeypatch):
    short = [*SHORT, "train.max_steps=2", "eval.at_end=true"]
    with monkeypatch.context() as patch:

        def broken(*args):
            raise DataError("the row cannot be scored")

        patch.setattr("lrft.api.training.scores.evaluate_tasks", broken)
        with pytest.raises(DataError):
            train(load_recipe(tiny_recipe(tmp_path), short), tmp_path / "run")
    assert (tmp_path / "run" / "last" / "adapter_model.safetensors").is_file()
    assert not (tmp_path / "run" / "result.json").exists()
    again = train(load_recipe(tiny_recipe(tmp_path), short), tmp_path / "run", resume=True)
    assert again["step"] == 2 and again["scores"]["loss"]["loss"] > 0


def test_scoring_tasks_again_and_again_keeps_nothing(tiny_recipe, tmp_path, monkeypatch):
    alive = []
    after_step = Scorer.after_step

    def counting(self, run):
        after_step(self, run)
        gc.collect()
        alive.append(sum(type(one) in (torch.Tensor, torch.nn.Parameter) for one in gc.get_objects()))

    monkeypatch.setattr(Scorer, "after_step", counting)
    asked = [*SHORT, "train.max_steps=6", "train.eval_tasks_every=1", "train.save_every=9", TASK]
    train(load_recipe(tiny_recipe(tmp_path), asked), tmp_path / "run")
    assert alive[2] == alive[5], alive  # after the second step the optimizer's state is there


def test_a_signal_while_a_task_is_scored_owes_the_scores(tasked, tiny_recipe, tmp_path, monkeypatch):
    six = [*SHORT, "train.max_steps=6", TASK, "train.eval_tasks_every=3", "eval.at_end=true"]
    loaded = load_recipe(tiny_recipe(tmp_path), six)
    with monkeypatch.context() as patch:
        stop_at(patch, 3)
        with pytest.raises(Interrupted):
            train(loaded, tmp_path / "run")
    assert "exact_match.stopped" not in lines(tmp_path / "run")[2]
    train(loaded, tmp_path / "run", resume=True)
    assert losses(tmp_path / "run") == losses(tasked / "run")


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            ["train.metric=exact_match.exact_match"],
            r"train.metric: no task of eval.tasks has .*; add exact_match there",
        ),
        (["train.metric=loss.los"], r"train.metric: .*did you mean loss.loss"),
        (["train.metric=loss.loss"], r"train.metric: .*write train.eval_tasks_every"),
        (["train.patience=2", "~train.eval_every"], r"train.patience: .*write train.eval_every"),
        (["eval.tasks=[]", "train.eval_tasks_every=2"], r"train.eval_tasks_every: there is no task"),
        (["eval.tasks=[]", "eval.at_end=true"], r"eval.at_end: there is no task"),
        (
            ["train.patience=2", "restart={method: relora, every: 4}"],
            r"train.patience: would end the run before restart",
        ),
    ],
)
def test_what_cannot_be_is_refused_with_what_would_work(recipe_file, overrides, message):
    with pytest.raises(RecipeError, match=message):
        load_recipe(recipe_file(), overrides)


def test_defaults_leave_a_recipe_its_hash(recipe_file):
    told = ["train.metric=loss", "train.patience=null", "train.eval_tasks_every=null", "eval.at_end=null"]
    assert recipe_hash(load_recipe(recipe_file(), told).recipe) == recipe_hash(
        load_recipe(recipe_file()).recipe
    )
    other = load_recipe(recipe_file(), ["train.patience=3"]).recipe
    assert recipe_hash(other) != recipe_hash(load_recipe(recipe_file()).recipe)


@pytest.mark.parametrize("name", TASKS.names())
def test_a_task_says_which_of_its_scores_are_better_higher(name):
    better = TASKS.declared(name).better
    assert better == TASKS.get(name).better and set(better.values()) <= {"higher", "lower"} and better
