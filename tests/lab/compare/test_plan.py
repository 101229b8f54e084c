"""Arms, rates and seeds become runs, each in a folder named by what decides its numbers."""

from __future__ import annotations

from pathlib import Path

import pytest

from lrft.lab.compare.arms import EQUAL, check_comparable, differences, labels
from lrft.lab.compare.settings import parse_rates, parse_seeds
from lrft.lab.runs.local import training_command, trusting
from lrft.lab.runs.planned import fingerprint, make_arm, plan_run
from lrft.registry.errors import RecipeError, UsageError


def test_a_folder_stands_for_recipe_rate_and_seed(recipe):
    arm = make_arm("a", recipe("a"))
    other = make_arm("a", recipe("b", "{method: lora, rank: 5, alpha: 8}"))
    folders = [
        plan_run(x, r, s, Path("o")).folder for x in (arm, other) for r in (1e-3, 2e-3) for s in (0, 1)
    ]
    assert len(set(folders)) == 8
    assert plan_run(arm, 1e-3, 0, Path("o")).folder == folders[0]
    assert folders[0].name.startswith("a-lr0.001-seed0-")


def test_changed_rows_and_other_code_mean_another_folder(recipe, tmp_path, monkeypatch):
    rows = tmp_path / "rows.jsonl"
    rows.write_text('{"prompt": "a", "completion": "b"}\n')
    arm = make_arm("a", recipe("a"), [f"data.train={rows}"])
    before = plan_run(arm, 1e-3, 0, Path("o")).folder
    rows.write_text('{"prompt": "a", "completion": "c"}\n')
    changed = plan_run(arm, 1e-3, 0, Path("o")).folder
    monkeypatch.setattr("lrft.lab.runs.planned.code_digest", lambda recipe: "99")
    assert len({before, changed, plan_run(arm, 1e-3, 0, Path("o")).folder}) == 3


def test_a_run_that_trusts_code_is_another_and_says_so(recipe):
    arm = make_arm("a", recipe("a"))
    plain, trusted = (plan_run(arm, 1e-3, 0, Path("o"), trusted=given) for given in (False, True))
    assert plain.folder != trusted.folder
    command = training_command(Path("a.yaml"), trusted.folder)
    assert trusting(trusted, command) == [*command, "--trust-remote-code"]
    assert trusting(plain, command) == command


def test_a_large_file_is_told_by_size_and_slices(tmp_path, monkeypatch):
    monkeypatch.setattr("lrft.lab.runs.planned.WHOLE", 0)
    file = tmp_path / "weights"
    file.write_bytes(bytes(20 * 2**20))
    before = fingerprint(str(file))
    content = bytearray(20 * 2**20)
    content[-1] = 1
    file.write_bytes(content)
    assert fingerprint(str(file)) != before


def test_rate_and_seed_reach_the_recipe(recipe):
    run = plan_run(make_arm("a", recipe("a")), 3e-5, 7, Path("o"))
    assert (run.recipe.optimizer.lr, run.recipe.train.seed) == (3e-5, 7)


def test_the_last_step_is_scored_even_if_the_recipe_does_not_ask(recipe):
    assert make_arm("a", recipe("a")).recipe.train.eval_every == 3
    assert make_arm("a", recipe("a"), ["train.eval_every=2"]).recipe.train.eval_every == 2
    by_epochs = make_arm("a", recipe("a"), ["~train.max_steps", "train.epochs=1"])
    assert by_epochs.recipe.train.eval_every > 10**6


def test_an_arm_without_held_out_rows_is_refused(recipe):
    with pytest.raises(RecipeError, match="no held-out rows"):
        make_arm("a", recipe("a"), ["~data.eval"])


def test_arms_must_see_the_same_rows_for_the_same_steps(recipe):
    arm = make_arm("a", recipe("a"))
    other = make_arm("b", recipe("b"), ["train.max_steps=5", "data.train.limit=9", "train.clip=null"])
    with pytest.raises(UsageError) as error:
        check_comparable([arm, other])
    assert "train.max_steps: 3 in a, 5 in b" in str(error.value)
    assert "data.train.limit: 40 in a, 9 in b" in str(error.value)
    assert "clip" not in str(error.value)
    with pytest.raises(UsageError, match="two recipes"):
        check_comparable([arm])


def test_what_differs_is_listed_for_every_arm(recipe):
    arms = [make_arm("a", recipe("a")), make_arm("b", recipe("b", "{method: dora, rank: 2, alpha: 8}"))]
    found = differences(arms)
    assert found["adapter.method"] == ["lora", "dora"]
    assert found["adapter.rank"] == [4, 2]
    assert not {"model.name", "optimizer.lr"} & found.keys()


def test_labels_are_as_short_as_can_be():
    assert labels(["x/lora.yaml", "y/dora.yaml"]) == ["lora", "dora"]
    assert labels(["x/lora.yaml", "y/lora.yaml"]) == ["x/lora", "y/lora"]
    with pytest.raises(UsageError, match="given twice"):
        labels(["a.yaml", "a.yaml"])


@pytest.mark.parametrize(
    ("text", "seeds"), [("3", [0, 1, 2]), ("10-12", [10, 11, 12]), ("5,7", [5, 7]), ("5,", [5])]
)
def test_seeds_are_a_number_a_range_or_a_list(text, seeds):
    assert parse_seeds(text) == seeds


@pytest.mark.parametrize("text", ["0", "-3", "x", "3,3", "5-2", "", "1000,", "999-1001"])
def test_seeds_that_are_none_or_that_tune_are_refused(text):
    with pytest.raises(UsageError, match="--seeds"):
        parse_seeds(text)


def test_rates_are_sorted_and_checked():
    assert parse_rates("1e-3,1e-4") == [1e-4, 1e-3]
    for text in ("", "1e-3,1e-3", "0", "-1", "nan", "inf", "a"):
        with pytest.raises(UsageError, match="--lr-grid"):
            parse_rates(text)


def test_the_keys_that_arms_share_are_those_marked_in_the_recipe():
    model = {f"model.{key}" for key in ("name", "revision", "weights", "tokenizer", "head", "add_tokens")}
    length = {f"train.{key}" for key in ("max_steps", "stop_below", "epochs")}
    step = {f"train.{key}" for key in ("batch_size", "gradient_accumulation", "max_length", "packing")}
    length |= {f"train.{key}" for key in ("metric", "patience", "extended")}
    rounds = {"clients", "rounds", "fraction", "local_steps", "local_epochs", "partition"}
    apart = {f"federate.{key}" for key in rounds}
    assert (
        set(EQUAL) == {*model, *length, *step, *apart, "data", "privacy", "eval.limit"} and len(EQUAL) == 25
    )


def test_changed_rows_of_one_source_of_several_mean_another_folder(recipe, tmp_path):
    for name in "ab":
        (tmp_path / f"{name}.jsonl").write_text('{"prompt": "a", "completion": "b"}\n')
    for given in (f"[{tmp_path}/a.jsonl, {tmp_path}/b.jsonl]", f"'{tmp_path}/*.jsonl'"):
        arm = make_arm("a", recipe("a"), [f"data.train={given}"])
        before = plan_run(arm, 1e-3, 0, Path("o")).folder
        (tmp_path / "b.jsonl").write_text(f'{{"prompt": "{len(given)}", "completion": "c"}}\n')
        assert plan_run(arm, 1e-3, 0, Path("o")).folder != before
