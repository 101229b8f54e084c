"""FSDP asked for by accelerate's own configuration: the base is cut, the run is the one that one process makes."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import yaml

from lrft.api.training.train import train
from lrft.recipe.load import load_recipe
from lrft.registry.errors import RecipeError
from lrft.training.launcher import ASKS, KEY, TAKEN, as_launched
from tests.launched import by_launcher, free_port

SETTINGS = {
    "fsdp_version": 2,
    "fsdp_reshard_after_forward": True,
    "fsdp_auto_wrap_policy": "TRANSFORMER_BASED_WRAP",
    "fsdp_state_dict_type": "SHARDED_STATE_DICT",
    "fsdp_cpu_ram_efficient_loading": True,
    "fsdp_sync_module_states": True,
}


def losses(folder: Path) -> list[float]:
    lines = map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
    return [line["loss"] for line in lines if "loss" in line]


@pytest.fixture
def asked(monkeypatch):
    """Sets the variables that `accelerate launch` sets; what lrft makes of them goes with the test."""

    def ask(**settings: str) -> None:
        for name, value in {ASKS: "true", TAKEN: "false", "FSDP_VERSION": "2", **settings}.items():
            monkeypatch.setenv(name, value)

    return ask


def test_fsdp_2_is_a_base_that_is_cut_and_nobody_else_is_asked_for_it(asked, tiny_recipe, tmp_path, capsys):
    recipe = load_recipe(tiny_recipe(tmp_path))
    assert as_launched(recipe) is recipe  # nobody asks
    asked(FSDP_RESHARD_AFTER_FORWARD="false")
    found = as_launched(recipe)
    assert found.recipe.train.shard_base and found.origins[KEY] == "accelerate's FSDP"
    assert found.recipe.train.model_copy(update={"shard_base": False}) == recipe.recipe.train
    assert "dropped after every product, whatever fsdp_reshard_after_forward says" in capsys.readouterr().err
    assert os.environ[ASKS] == "false"  # or transformers would load nothing into the second process
    assert as_launched(recipe).recipe == found.recipe  # and it stays so in this process
    own = load_recipe(tiny_recipe(tmp_path), [f"{KEY}=true"])
    assert as_launched(own) is own


@pytest.mark.parametrize(
    "settings, overrides, said",
    [
        ({"FSDP_VERSION": "1"}, [], "train.shard_base: .*version 1; write fsdp_version: 2"),
        ({"FSDP_OFFLOAD_PARAMS": "true"}, [], "fsdp_offload_params, and the parts of a base stay"),
        (
            {"FSDP_ACTIVATION_CHECKPOINTING": "true"},
            [],
            "model.activation_checkpointing: .*fsdp_activation_checkpointing; write true here",
        ),
        (
            {
                "FSDP_ACTIVATION_CHECKPOINTING": "true",
                "FSDP_ACTIVATION_CHECKPOINTING_OFFLOAD": "true",
            },
            ["model.activation_checkpointing=true"],
            "fsdp_activation_checkpointing_offload, and what a layer begins with stays",
        ),
        ({}, ["model.compile=true"], "stands for train.shard_base: true, and cannot gather weights"),
    ],
)
def test_what_of_it_is_not_here_is_refused_in_a_sentence(
    settings, overrides, said, asked, tiny_recipe, tmp_path
):
    recipe = load_recipe(tiny_recipe(tmp_path), overrides)
    asked(**settings)
    with pytest.raises(RecipeError, match=said):
        train(recipe, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_accelerate_launches_fsdp_on_two_processes_and_one_goes_on_after_a_kill(tiny_recipe, tmp_path):
    recipe, config = tiny_recipe(tmp_path, "float32"), tmp_path / "fsdp.yaml"
    same = ["quantization=nf4", "train.max_steps=8", "train.save_every=2", "train.device=cpu"]
    one, two = tmp_path / "one", tmp_path / "two"
    train(load_recipe(recipe, [*same, "train.gradient_accumulation=2"]), one)
    config.write_text(
        yaml.safe_dump(
            {
                "compute_environment": "LOCAL_MACHINE",
                "distributed_type": "FSDP",
                "fsdp_config": SETTINGS,
                "mixed_precision": "no",
                "num_machines": 1,
                "num_processes": 2,
                "machine_rank": 0,
                "main_process_port": free_port(),
                "use_cpu": False,
            }
        )
    )
    same += ["train.gradient_accumulation=1"]
    script = Path(__file__).with_name("shards_on_two_processes.py")
    words = ["accelerate.commands.launch", f"--config_file={config}"]
    done = by_launcher(*words, script, recipe, two, "5", *same)
    assert done.returncode != 0 and len(losses(two)) == 5, done.stderr[-3000:]  # killed after step 5
    assert json.loads((two / "run.json").read_text())["processes"] == 2
    assert yaml.safe_load((two / "recipe.yaml").read_text())["train"]["shard_base"] is True
    train(load_recipe(recipe, same), two, resume=True)  # nobody asks for a cut base any more
    assert losses(two) == pytest.approx(losses(one), rel=1e-5) and len(losses(two)) == 8
