"""Trackers: what they are sent, that a resumed run goes on in the same place, and that none is why a run fails."""

from __future__ import annotations

import json
import sys
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest

from lrft.api.training.train import train
from lrft.build.trackers import KINDS
from lrft.recipe.load import load_recipe
from lrft.recipe.resolved import recipe_hash
from lrft.registry.errors import DataError, Interrupted, MissingExtra, RecipeError
from tests.training.unbroken import stop_at

SHORT = ["train.max_steps=3", "train.eval_every=2", "train.save_every=1"]
ASKED = {
    "wandb": "logging.wandb=mine",
    "tensorboard": "logging.tensorboard=true",
    "mlflow": "logging.mlflow=mine",
    "trackio": "logging.trackio=mine",
}


class Sent:
    """What a tracker was sent, whichever it is: runs as they were begun, numbers by run and step, and ends."""

    def __init__(self) -> None:
        self.begun: list[tuple[str, bool]] = []
        self.numbers: list[tuple[str, int, dict[str, float]]] = []
        self.ended: list[str] = []
        self.settings: dict[str, object] = {}

    def begin(self, name: str, resumed: bool, settings: dict) -> None:
        self.begun.append((name, resumed))
        self.settings |= settings


def fake_wandb(sent: Sent) -> dict[str, ModuleType]:
    def init(*, id, config, **more):
        sent.begin(id or "first", id is not None, config)
        name = id or "first"
        log = lambda numbers, step: sent.numbers.append((name, step, numbers))  # noqa: E731
        return SimpleNamespace(id=name, log=log, finish=lambda: sent.ended.append(name))

    return {"wandb": module("wandb", init=init)}


def fake_trackio(sent: Sent) -> dict[str, ModuleType]:
    def init(project, *, name, config, resume, **more):
        print("* a line of its own")
        sent.begin(name, resume == "allow", config)
        log = lambda numbers, step: sent.numbers.append((name, step, numbers))  # noqa: E731
        return SimpleNamespace(log=log)

    return {"trackio": module("trackio", init=init, finish=lambda: sent.ended.append("current"))}


def fake_mlflow(sent: Sent) -> dict[str, ModuleType]:
    class MlflowClient:
        def get_experiment_by_name(self, name):
            return None

        def create_experiment(self, name):
            return f"experiment of {name}"

        def create_run(self, experiment, run_name):
            assert experiment == "experiment of mine"
            sent.begin("first", False, {})
            return SimpleNamespace(info=SimpleNamespace(run_id="first"))

        def update_run(self, run, status):
            assert status == "RUNNING"
            sent.begin(run, True, {})

        def log_batch(self, run, metrics=(), params=()):
            assert len(params) <= 100
            sent.settings |= {one.key: one.value for one in params}
            if metrics:
                sent.numbers.append((run, metrics[0].step, {one.key: one.value for one in metrics}))

        def set_terminated(self, run, status):
            sent.ended.append(f"{run} {status}")

    def metric(key, value, timestamp, step):
        return SimpleNamespace(key=key, value=value, step=step)

    def param(key, value):
        return SimpleNamespace(key=key, value=value)

    entities = module("mlflow.entities", Metric=metric, Param=param)
    return {
        "mlflow": module("mlflow", MlflowClient=MlflowClient, entities=entities),
        "mlflow.entities": entities,
    }


def fake_tensorboard(sent: Sent) -> dict[str, ModuleType]:
    class SummaryWriter:
        def __init__(self, place, purge_step):
            self.place = place
            sent.begin(place, purge_step > 1, {})

        def add_text(self, name, text):
            sent.settings |= {name: text}

        def add_scalar(self, name, value, step):
            if not sent.numbers or sent.numbers[-1][1] != step:
                sent.numbers.append((self.place, step, {}))
            sent.numbers[-1][2][name] = value

        def close(self):
            sent.ended.append(self.place)

    name = "torch.utils.tensorboard"
    return {"tensorboard": module("tensorboard"), name: module(name, SummaryWriter=SummaryWriter)}


FAKES = {
    "wandb": fake_wandb,
    "tensorboard": fake_tensorboard,
    "mlflow": fake_mlflow,
    "trackio": fake_trackio,
}


def module(name: str, **content) -> ModuleType:
    made = ModuleType(name)
    made.__spec__ = ModuleSpec(name, None)  # libraries ask whether it is installed
    made.__dict__.update(content)
    return made


@pytest.fixture
def sent(key, monkeypatch) -> Sent:
    found = Sent()
    for name, made in FAKES[key](found).items():
        monkeypatch.setitem(sys.modules, name, made)
    return found


def lines(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def test_every_tracker_has_a_setting_and_a_test():
    assert {kind.key for kind in KINDS} == ASKED.keys() == FAKES.keys()


@pytest.mark.parametrize("key", ASKED)
def test_a_tracker_is_sent_every_step_and_goes_on_where_it_was(
    recipe_file, tmp_path, monkeypatch, sent, key, capsys
):
    loaded = load_recipe(recipe_file(), [*SHORT, ASKED[key]])
    with monkeypatch.context() as patch:
        stop_at(patch, 2)
        with pytest.raises(Interrupted):
            train(loaded, tmp_path / "run")
    train(loaded, tmp_path / "run", resume=True)
    (first, fresh), (again, resumed) = sent.begun
    assert first == again and (fresh, resumed) == (False, True)
    assert {name for name, _, _ in sent.numbers} == {first}
    for line in lines(tmp_path / "run"):
        found = {}
        for _, step, numbers in sent.numbers:
            found |= numbers if step == line["step"] else {}
        scored = {name: found.pop(name) for name in list(found) if name.startswith("loss.")}
        assert bool(scored) == (line["step"] == 3)  # and its scores at the end, where the recipe names tasks
        owed = key == "wandb" and line["step"] == 2  # the score that the signal cut short
        assert found == {
            name: v for name, v in line.items() if name != "step" and not (owed and "eval" in name)
        }
    assert len(sent.ended) == 2 and "lr" in str(sent.settings)
    if key == "mlflow":
        assert sent.ended == ["first KILLED", "first FINISHED"] and sent.settings["adapter.rank"] == "4"
    assert capsys.readouterr().out == ""


def scored(sent: Sent) -> dict[tuple[int, str], float]:
    """Step and name -> what was sent of the task `loss`."""
    all_numbers = [(step, name, v) for _, step, numbers in sent.numbers for name, v in numbers.items()]
    return {(step, name): v for step, name, v in all_numbers if name.startswith("loss.")}


@pytest.mark.parametrize("key", ASKED)
def test_scores_at_the_end_are_sent_once_they_are_taken(recipe_file, tmp_path, monkeypatch, sent, key):
    """In a later sitting too; a tracker whose steps only rise has them behind the last."""
    loaded = load_recipe(recipe_file(), ["train.max_steps=2", "eval.limit=2", ASKED[key]])
    with monkeypatch.context() as patch:

        def stopped(*args):
            raise DataError("the row cannot be scored")

        patch.setattr("lrft.api.training.scores.evaluate_tasks", stopped)
        with pytest.raises(DataError):
            train(loaded, tmp_path / "run")
    assert len(sent.ended) == 1 and not scored(sent)
    scores = train(loaded, tmp_path / "run", resume=True)["scores"]
    wanted = {f"{task}.{name}": value for task, one in scores.items() for name, value in one.items()}
    assert scored(sent) == {(3 if key == "wandb" else 2, name): value for name, value in wanted.items()}
    assert len(sent.ended) == 2


@pytest.mark.parametrize("where", ["begin", "log", "end"])
@pytest.mark.parametrize("key", ["tensorboard"])
def test_a_tracker_that_raises_is_told_once_and_left(
    recipe_file, tmp_path, monkeypatch, sent, where, key, capsys
):
    kind = next(kind for kind in KINDS if kind.key == key)
    calls = []

    def broken(self, *arguments):
        calls.append(where)
        raise ConnectionError("the server is gone\nand so on")

    monkeypatch.setattr(kind, where, broken)
    result = train(load_recipe(recipe_file(), [*SHORT, ASKED[key]]), tmp_path / "run")
    said = capsys.readouterr().err
    assert result["step"] == 3 and len(lines(tmp_path / "run")) == 3 and calls == [where]
    told = "logging.tensorboard: failed, and the run goes on without it (the server is gone)"
    assert said.count(told) == 1 and "and so on" not in said


@pytest.mark.parametrize("key", ASKED)
def test_a_library_that_is_absent_is_told_before_anything_is_written(recipe_file, tmp_path, monkeypatch, key):
    monkeypatch.setitem(sys.modules, key, None)
    with pytest.raises(MissingExtra, match=rf"logging.{key}: needs `pip install "):
        train(load_recipe(recipe_file(), [*SHORT, ASKED[key]]), tmp_path / "run")
    assert not (tmp_path / "run" / "run.json").exists()


@pytest.mark.parametrize("key", ["tensorboard"])
def test_runs_of_one_name_have_folders_of_their_own_where_they_share_one(tmp_path, sent, key):
    from lrft.training.trackers.tensorboard import Tensorboard

    places = []
    for parent in ("a", "b"):
        tracker = Tensorboard(str(tmp_path / "shared"), tmp_path / parent / "run", {})
        tracker.start(SimpleNamespace(rank=0, step=0, metrics={}))
        places.append(sent.begun[-1][0])
        Path(places[-1]).mkdir(parents=True)
    assert places == [str(tmp_path / "shared" / name) for name in ("run", "run-2")] and tracker.id == "run-2"
    tracker.close()
    assert sent.ended == [places[1]]


def test_the_defaults_leave_a_recipe_its_hash(recipe_file):
    told = ["logging.tensorboard=false", "logging.mlflow=null", "logging.trackio=null"]
    assert recipe_hash(load_recipe(recipe_file(), told).recipe) == recipe_hash(
        load_recipe(recipe_file()).recipe
    )
    with pytest.raises(RecipeError, match=r"logging.mlflow"):
        load_recipe(recipe_file(), ["logging.mlflow=true"])
