"""No number that is none reaches the disk, whoever made it; and the run says where it came from."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from lrft.api.training.train import train
from lrft.core.callback import Callback
from lrft.core.run import Run
from lrft.recipe.load import load_recipe
from lrft.registry.errors import NumericalError, RecipeError
from lrft.training import checkpoint_folder
from lrft.training.finite import SHOWN, name_rows, non_finite
from tests.training.conftest import tiny_recipe as tiny_recipe

SHORT = ["train.max_steps=4", "train.save_every=2", "~train.eval_every", "quantization=none", "eval.tasks=[]"]


class Poison(Callback):
    """Gives one number of what `pick` chooses another value after a step."""

    def __init__(self, step: int, pick: Callable[[Run], torch.Tensor], value: float) -> None:
        self.step, self.pick, self.value = step, pick, value

    @torch.no_grad()
    def after_step(self, run: Run) -> None:
        if run.step == self.step:
            self.pick(run).view(-1)[3] = self.value


@pytest.fixture
def poisoned(monkeypatch) -> Callable[..., None]:
    """`poisoned(step, pick, value)`: the next training has it among its first callbacks."""
    from lrft.build import callbacks

    def put(step: int, pick: Callable[[Run], torch.Tensor], value: float = float("nan")) -> None:
        original = callbacks._timed_methods
        monkeypatch.setattr(
            callbacks, "_timed_methods", lambda recipe: [*original(recipe), Poison(step, pick, value)]
        )

    return put


def weight(run: Run) -> torch.Tensor:
    return run.parameters[2].param


def moment(run: Run) -> torch.Tensor:
    return run.optimizer.state[run.parameters[2].param]["exp_avg_sq"]


def every_tensor(folder: Path) -> dict[str, torch.Tensor]:
    """Of every file of tensors below a folder, those of the batch that is kept for looking at left out."""
    files = [path for path in folder.rglob("*.safetensors") if not path.name.startswith("non-finite")]
    return {f"{path}:{name}": t for path in files for name, t in load_file(path).items()}


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("pick", [weight, moment])
def test_a_tensor_that_is_no_number_is_not_saved(tiny_recipe, tmp_path, poisoned, pick, value):
    poisoned(4, pick, value)
    with pytest.raises(NumericalError) as stopped:
        train(load_recipe(tiny_recipe(tmp_path), SHORT), tmp_path / "run")
    said = str(stopped.value)
    assert stopped.value.exit_code == 4
    assert said.startswith("step 4: 1 of the ")
    assert "layers.0.self_attn.k_proj" in said and "float32" in said
    assert ("exp_avg_sq of " in said) == (pick is moment)
    assert "in steps 3 to 4" in said
    assert not (tmp_path / "run" / "adapter").exists()
    assert [path.name for path in (tmp_path / "run" / "checkpoints").iterdir()] == ["step-2"]
    assert not non_finite(every_tensor(tmp_path / "run"))


def test_the_rows_of_the_one_step_are_named_by_file_and_line(tiny_recipe, tmp_path, poisoned):
    poisoned(1, weight)
    wanted = [*SHORT, "train.save_every=1", "train.packing=false"]  # two micro-batches of two rows
    with pytest.raises(
        NumericalError, match=r"in step 1 with training rows \S*/train\.jsonl:\d+(, \d+){3}, so"
    ):
        train(load_recipe(tiny_recipe(tmp_path), wanted), tmp_path / "run")


def test_many_rows_are_counted_and_each_file_is_named_once():
    class Places:
        def where(self, row):
            return ["a.jsonl:7", "b.parquet row 2", "a.jsonl:12", "hub:train row 5", "window"][row % 5]

    assert name_rows(Places(), [0, 1, 2]) == "a.jsonl:7, 12; b.parquet row 2"
    assert name_rows(Places(), [4]) == "window"
    assert name_rows(Places(), list(range(20))).endswith(f" and {20 - SHOWN} more")


def test_the_run_goes_on_from_the_newest_finite_checkpoint(tiny_recipe, tmp_path, poisoned, monkeypatch):
    """One that an earlier version wrote with its sums right is passed over by name."""
    recipe = load_recipe(tiny_recipe(tmp_path), [*SHORT, "train.save_every=1", "train.keep_last=9"])
    whole = train(recipe, tmp_path / "whole")
    run = tmp_path / "run"
    train(recipe, run)
    for name in ("adapter.safetensors", "optimizer.safetensors"):
        newest = run / "checkpoints" / "step-4"
        files = {path.name: path.read_bytes() for path in newest.iterdir() if path.name != "manifest.json"}
        tensors = load_file(newest / name)
        next(t for t in tensors.values() if t.is_floating_point() and t.numel() > 1).view(-1)[0] = math.inf
        save_file(tensors, newest / name)
        files[name] = (newest / name).read_bytes()
        manifest = json.loads((newest / "manifest.json").read_text())
        checkpoint_folder.write_folder(newest, files, {k: v for k, v in manifest.items() if k != "files"})
        (run / "result.json").unlink(missing_ok=True)
        said: list[str] = []
        assert checkpoint_folder.newest(run / "checkpoints", said.append) == run / "checkpoints" / "step-3"
        assert f"step-4: {name} holds numbers that are not finite, in " in said[0]
        assert train(recipe, run, resume=True)["loss"] == whole["loss"]
        assert not checkpoint_folder.fault(newest)


def test_a_run_that_overflows_in_its_last_step_fails(tiny_recipe, tmp_path):
    """No later loss can tell of it: with one step the first update is the last."""
    wanted = [*SHORT, "train.max_steps=1", "schedule.warmup_ratio=0"]
    recipe = load_recipe(tiny_recipe(tmp_path), wanted)
    huge = recipe.recipe.optimizer.model_copy(update={"lr": 1e308})  # which no recipe may say
    recipe = replace(recipe, recipe=recipe.recipe.model_copy(update={"optimizer": huge}))
    with pytest.raises(NumericalError, match=r"step 1: \d+ of the \d+ numbers of .* are not finite"):
        train(recipe, tmp_path / "run")
    assert not list((tmp_path / "run" / "checkpoints").glob("*"))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.int64, torch.uint8])
def test_every_number_is_looked_at(dtype):
    fine = {"a": torch.zeros(3, 5, dtype=dtype), "none": torch.zeros(0), "scalar": torch.tensor(1.0)}
    assert non_finite(fine) == []
    if dtype.is_floating_point:
        for place in range(15):
            bad = torch.zeros(3, 5, dtype=dtype)
            bad.view(-1)[place] = float("inf")
            assert non_finite({**fine, "b": bad, "c": torch.tensor(float("nan"))}) == ["b", "c"]


@pytest.mark.parametrize(("method", "refused"), [("lora", True), ("dora", True), ("vera", False)])
def test_a_rank_above_the_smaller_side_is_refused_by_the_layer(tiny_recipe, tmp_path, method, refused):
    """VeRA's rank is of random matrices that all layers share, and may be larger."""
    loaded = load_recipe(tiny_recipe(tmp_path), [*SHORT, f"adapter={{method: {method}, rank: 65}}"])
    if not refused:
        assert train(loaded, tmp_path / "run")["step"] == 4
        return
    with pytest.raises(
        RecipeError, match=r"rank 65 is more than any change of .*layers\.0\.\S+ can have"
    ) as e:
        train(loaded, tmp_path / "run")
    assert e.value.problems[0].key == "adapter.rank" and e.value.exit_code == 2
    assert not (tmp_path / "run" / "checkpoints").exists()


@pytest.mark.parametrize(
    ("method", "key"),
    [
        *(("hqq", "group_size"), ("int_groups", "group_size"), ("torchao_int8", "group_size")),
        *(("nf4_reference", "block_size"), ("nf_blocks", "block_size"), ("nf_blocks", "scales_per_block")),
    ],
)
def test_groups_of_weights_are_no_larger_than_anybody_means(method, key):
    """Weights are filled up to whole groups, which of 10^12 is more than any memory."""
    with pytest.raises(RecipeError, match=r"at most 1048576.*not 1048578"):
        load_recipe("smoke/lora", [f"quantization={{method: {method}, {key}: 1048578}}"])
    load_recipe("smoke/lora", [f"quantization={{method: {method}, {key}: 1048576}}"])
