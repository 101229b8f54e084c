"""Deterministic training and TF32: on inside a training, as before afterwards, and refused in one sentence."""

from __future__ import annotations

import json
import os

import pytest
import torch

from lrft.api.training.train import train
from lrft.recipe.load import load_recipe
from lrft.registry.errors import RecipeError
from lrft.training import metrics
from lrft.training.numerics import WORKSPACE, numerics
from tests.training.unbroken import losses


def state():
    return (
        torch.are_deterministic_algorithms_enabled(),
        torch.is_deterministic_algorithms_warn_only_enabled(),
        torch.utils.deterministic.fill_uninitialized_memory,
        torch.backends.cuda.matmul.allow_tf32,
        os.environ.get(WORKSPACE),
        os.environ.get("FLASH_ATTENTION_DETERMINISTIC"),
    )


def test_settings_hold_inside_and_are_taken_back(monkeypatch):
    monkeypatch.delenv(WORKSPACE, raising=False)
    before = state()
    with numerics(deterministic=True, tf32=True):
        assert state() == (True, False, False, True, ":4096:8", "1")
    assert state() == before
    with numerics(deterministic=False, tf32=False):
        assert state() == before
    with pytest.raises(KeyError), numerics(deterministic=True, tf32=True):
        raise KeyError
    assert state() == before


def test_a_workspace_that_is_set_is_kept_or_refused(monkeypatch):
    monkeypatch.setenv(WORKSPACE, ":16:8")
    with numerics(deterministic=True, tf32=False):
        assert os.environ[WORKSPACE] == ":16:8"
    monkeypatch.setenv(WORKSPACE, ":0:0")
    with pytest.raises(RecipeError, match=r"train.deterministic: .* is ':0:0', .*set it to :4096:8 or :16:8"):
        numerics(deterministic=True, tf32=False).__enter__()
    assert os.environ[WORKSPACE] == ":0:0"


def test_a_process_that_used_the_gpu_without_the_variable_is_refused(monkeypatch):
    monkeypatch.delenv(WORKSPACE, raising=False)
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    with pytest.raises(RecipeError, match=rf"used the GPU already; set {WORKSPACE}=:4096:8 before"):
        numerics(deterministic=True, tf32=False).__enter__()


def test_an_operation_without_a_deterministic_form_is_refused_by_name(recipe_file, tmp_path, monkeypatch):
    from lrft.training import loop

    step_loss = loop.step_loss

    def putting(run, batches, objective):
        torch.zeros(3).put_(torch.tensor([1]), torch.ones(1))
        return step_loss(run, batches, objective)

    monkeypatch.setattr(loop, "step_loss", putting)
    with pytest.raises(
        RecipeError, match=r"train.deterministic: put_ has no form here .*write false"
    ) as raised:
        train(load_recipe(recipe_file(), ["train.deterministic=true"]), tmp_path / "run", resume=False)
    assert "\n" not in str(raised.value)
    assert not torch.are_deterministic_algorithms_enabled()


def test_other_errors_are_not_taken_for_that():
    with pytest.raises(RuntimeError, match="as it was"), numerics(deterministic=True, tf32=False):
        raise RuntimeError("as it was")


@pytest.mark.parametrize("method", ["lora", "dora"])
def test_on_a_cpu_a_deterministic_training_has_the_same_losses(recipe_file, tmp_path, method):
    """All that a step of these does exists in a form that torch calls deterministic."""
    same = [f"adapter.method={method}", "train.max_steps=3"]
    train(load_recipe(recipe_file(), same), tmp_path / "plain", resume=False)
    train(load_recipe(recipe_file(), [*same, "train.deterministic=true"]), tmp_path / "strict", resume=False)
    assert losses(tmp_path / "strict") == losses(tmp_path / "plain")


def test_peak_memory_is_that_of_the_steps(monkeypatch):
    held = {"peak": 900}
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda: held["peak"])
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", lambda: held.update(peak=100))
    assert metrics.peak_memory() == 900
    metrics.forget_peak_memory()
    assert metrics.peak_memory() == 100


@pytest.mark.gpu
def test_on_a_gpu_two_deterministic_trainings_have_the_same_losses(recipe_file, tmp_path, monkeypatch):
    """Packed rows, pinned batches of a background thread, and the kernel for rows of many lengths."""
    monkeypatch.setenv(WORKSPACE, ":4096:8")
    more = ["train.device=cuda", "train.deterministic=true", "~train.eval_every"]
    for name in ("one", "two"):
        train(load_recipe(recipe_file(), more), tmp_path / name, resume=False)
        assert json.loads((tmp_path / name / "run.json").read_text())["attention"] in (
            "varlen",
            "flash_attention_2",
        )
    assert losses(tmp_path / "one") == losses(tmp_path / "two")
