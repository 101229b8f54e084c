"""Scoring divided among processes finds what one process finds, and they stop and fail together."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from lrft.api.training.train import train
from lrft.core.team import ALONE
from lrft.recipe.load import load_recipe
from tests.evaluation.on_two_processes import met, scores
from tests.launched import launched

RECIPE = Path(__file__).parents[2] / "recipes" / "smoke" / "lora.yaml"


@pytest.fixture(scope="module")
def found(tiny, tmp_path_factory) -> dict[str, dict]:
    """Of one run: what one process finds, and what each of two does."""
    folder = tmp_path_factory.mktemp("divided")
    same = [f"model.name={tiny('llama')}", "data.eval.limit=5", "train.device=cpu", "train.max_steps=2"]
    same += ["eval.batch_tokens=150", "eval.tasks=[loss, {method: exact_match, max_new_tokens: 3}]"]
    runs, one = {"run": same, "sharded": [*same, "train.shard_base=true", "quantization=nf4"]}, {}
    for name, overrides in runs.items():
        train(load_recipe(RECIPE, overrides), folder / name)
        one[name] = json.loads(json.dumps(scores(folder / name)))
    reports = [(folder / name / "eval" / "adapter.json").read_bytes() for name in runs]
    script = Path(__file__).with_name("on_two_processes.py")
    done = launched(script, folder / "part", *(folder / name for name in runs))
    assert done.returncode == 0, done.stderr[-3000:]
    assert [(folder / name / "eval" / "adapter.json").read_bytes() for name in runs] == reports
    parts = [json.loads((folder / f"part-{rank}.json").read_text()) for rank in range(2)]
    return {"one": one, "first": parts[0], "second": parts[1]}


@pytest.mark.parametrize("run", ["run", "sharded"])
@pytest.mark.parametrize("what", ["tasks", "logprobs", "rows"])
def test_two_processes_score_what_one_does_to_the_last_bit(found, run, what):
    one, first, second = (found[which][run] for which in ("one", "first", "second"))
    assert one[what]
    assert first[what] == second[what] == one[what]
    assert [part["team"] for part in (one, first, second)] == [1, 2, 2]


def test_each_process_does_its_share(found):
    worked = [found[which]["met"]["whole"]["worked"] for which in ("first", "second")]
    assert worked == [[0, 2, 4], [1, 3]]
    assert found["first"]["met"]["whole"]["found"] == [0, 10, 20, 30, 40] == met(ALONE)["found"]
    assert found["second"]["met"]["none"]["found"] == []


@pytest.mark.parametrize(("case", "item"), [("failed", 3), ("failed first", 0)])
def test_what_fails_in_one_process_is_raised_in_all(found, case, item):
    for which in ("first", "second"):
        assert found[which]["met"][case]["error"] == f"NumericalError: item {item} is no number"
        assert 4 not in found[which]["met"][case]["worked"]
    assert met(ALONE, fail=item)["error"] == f"NumericalError: item {item} is no number"


def test_a_signal_at_one_process_stops_all_in_the_same_place(found):
    for which in ("first", "second"):
        stopped = found[which]["met"]["stopped"]
        assert stopped["error"].startswith(
            "EvaluationStopped: interrupted (SIGINT): stopped after 2 of 5 rows"
        )
        assert len(stopped["worked"]) == 1


def test_processes_that_go_in_step_take_equally_many_passes(found):
    for case, passes, whole in (("in step", 3, [0, 10, 20, 30, 40]), ("fewer than processes", 1, [0])):
        for which in ("first", "second"):
            assert len(found[which]["met"][case]["worked"]) == passes
            assert found[which]["met"][case]["found"] == whole


def test_processes_that_asked_for_other_weights_stop_before_anything_is_believed(found):
    for which in ("first", "second"):
        assert found[which]["met"]["same order"]["found"] == [0]
        other = found[which]["met"]["other order"]
        assert other["error"].startswith(
            "RecipeError: train.shard_base: the processes used the layers in different"
        )
        assert other["worked"] == []
