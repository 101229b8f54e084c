"""Federations: clients on one model in turn, what a round measures, how one goes on, and what is refused."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from lrft.api.training.federate import federate, share
from lrft.api.training.train import train
from lrft.build.adapt import adapt
from lrft.build.averaging_error import averaging_error
from lrft.build.dataset import read_text
from lrft.build.federation import assemble_federation
from lrft.build.trained_values import read
from lrft.core.adapted import adapted
from lrft.model.trained import parameter_infos
from lrft.recipe.load import load_recipe
from lrft.recipe.resolved import recipe_hash
from lrft.registry.errors import DataError, Interrupted, NumericalError, RecipeError, UsageError
from lrft.training.device import make_accelerator
from lrft.training.folder import RunFolder
from lrft.training.gradient_check import GradientCheck
from tests.each import each
from tests.training.unbroken import same

ONE = ["~train.max_steps", "data.train.limit=16", "~train.eval_every", "~data.eval", "~eval.tasks"]
CLIENTS = "federate={clients: 2, rounds: 2, local_steps: 1, partition: even}"


def recipe_of(recipe_file, *overrides, dtype="float32"):
    return load_recipe(recipe_file(dtype), [*ONE, *overrides])


def job_of(recipe_file, tmp_path, *overrides, federation=CLIENTS):
    recipe = recipe_of(recipe_file, federation, *overrides).recipe
    text, accelerator = read_text(recipe), make_accelerator("cpu", "float32")
    adaptation = adapt(recipe, text=text)
    folder = RunFolder(tmp_path / "run")
    return assemble_federation(recipe, folder, text, adaptation, accelerator, recipe_hash(recipe))


def weights(folder: Path):
    return load_file(folder / "checkpoints" / f"step-{json.loads((folder / 'result.json').read_text())['step']}" /
                     "adapter.safetensors")  # fmt: skip


def test_one_client_in_one_round_is_a_plain_training_to_the_bit(recipe_file, tmp_path):
    """Dropout, schedule, order of rows and optimizer included."""
    plain = [one for one in ONE if one != "~train.max_steps"]
    loaded = load_recipe(recipe_file("float32"), [*plain, "train.max_steps=3"])
    train(loaded, tmp_path / "plain")
    federate(
        recipe_of(recipe_file, "federate={clients: 1, rounds: 1, local_steps: 3, partition: even}"),
        tmp_path / "one",
    )
    one, all_rows = weights(tmp_path / "one"), weights(tmp_path / "plain")
    assert one.keys() == all_rows.keys()
    assert all(torch.equal(one[name], value) for name, value in all_rows.items())


def test_clients_do_not_know_of_each_other_and_rounds_not_of_who_went_before(recipe_file, tmp_path):
    """What a client makes of a start does not depend on which client used the model before it."""
    from lrft.core.aggregate import Turn

    job = job_of(recipe_file, tmp_path)
    clients, start = job.run.optimizer.clients, read(job.run.parameters)
    first = clients.train(Turn(1, 0), start)
    clients.train(Turn(0, 0), start)
    again = clients.train(Turn(1, 0), start)
    assert first.losses == again.losses
    assert all(torch.equal(again.tensors[name], value) for name, value in first.tensors.items())
    assert any(not torch.equal(start[name], value) for name, value in first.tensors.items())


@each("adapter", ["lora", "hira", "lora_xs"])
def test_the_error_that_is_measured_is_that_of_the_merged_weights(adapter, recipe_file, tmp_path):
    """Against the mean of dense weights, whether changes are of low rank or not."""
    model = adapt(recipe_of(recipe_file, CLIENTS, f"adapter={{method: {adapter}, rank: 2}}").recipe).model
    infos = parameter_infos(model)
    start, generator, shares = read(infos), torch.Generator().manual_seed(0), [0.2, 0.3, 0.5]
    states = [
        {name: value + 0.1 * torch.randn(value.shape, generator=generator) for name, value in start.items()}
        for _ in range(4)
    ]
    merged = []
    for tensors in states:
        for info in infos:
            info.param.data.copy_(tensors[info.name])
        merged.append({name: site.change().double() for name, site in adapted(model)})
    exact = {
        name: sum(p * one[name] for p, one in zip(shares, merged[:3], strict=True)) for name in merged[0]
    }
    distance = sum(float((exact[name] - merged[3][name]).square().sum()) for name in exact) ** 0.5
    found = averaging_error(model, infos, start, states[:3], shares, states[3])
    assert found.absolute == pytest.approx(distance, rel=1e-5)
    assert found.exact == pytest.approx(sum(float(v.square().sum()) for v in exact.values()) ** 0.5, rel=1e-5)


def test_a_signal_ends_a_round_after_the_client_at_work_and_the_round_is_made_again(
    recipe_file, tmp_path, monkeypatch
):
    loaded = recipe_of(recipe_file, CLIENTS, "train.keep_last=9")
    federate(loaded, tmp_path / "whole")
    after_step, seen = GradientCheck.after_step, []

    def moved(self, run):
        after_step(self, run)
        seen.append(run.step)
        if len(seen) == 4:  # two clients and the server, then the first client of the second round
            os.kill(os.getpid(), signal.SIGINT)

    with monkeypatch.context() as patched:
        patched.setattr(GradientCheck, "after_step", moved)
        with pytest.raises(Interrupted, match="round 1 of 2 is saved"):
            federate(loaded, tmp_path / "broken")
    federate(loaded, tmp_path / "broken", resume=True)
    same(tmp_path / "broken", tmp_path / "whole")


def test_what_changes_beside_what_trains_is_refused(recipe_file, tmp_path):
    job = job_of(recipe_file, tmp_path, "adapter={method: lora_fa, rank: 2}")
    train_client = job.run.optimizer.clients.train

    def careless(turn, start):
        found = train_client(turn, start)
        next(site for _, site in adapted(job.run.model)).adapter.A.data += 1
        return found

    job.run.optimizer.clients.train = careless
    with pytest.raises(NumericalError, match=r"q_proj\.A changed while client 0 trained"):
        job.run.optimizer.step()


@each(
    ("change", "key"),
    [
        ("federate.aggregate=ffa_lora", "federate.aggregate.method"),
        ("federate.aggregate=fed_sb", "federate.aggregate.method"),
        ("train.max_steps=3", "train.max_steps"),
        ("restart=relora", "restart"),
        ("optimizer.per_layer=true", "optimizer.per_layer"),
        ("train.neftune=5.0", "train.neftune"),
        ("federate.local_epochs=1", "federate.local_epochs"),
        ("federate.partition=column", "federate.partition.column"),
        ("federate.aggregate={method: fed_stale, beta: 2}", "federate.aggregate.beta"),
        ("federate.aggregate=fedavgg", "federate.aggregate.method"),
    ],
)
def test_what_cannot_be_federated_is_said_before_anything_is_read(change, key, recipe_file):
    with pytest.raises(RecipeError) as refused:
        recipe_of(recipe_file, CLIENTS, change)
    assert key in [problem.key for problem in refused.value.problems]


@each(
    ("changes", "error", "said"),
    [
        (["federate.clients=99"], DataError, "write at most"),
        (["federate.partition={by: column, column: nobody}"], DataError, "no column 'nobody'"),
        (["federate.aggregate={method: hetlora, ranks: [9]}"], RecipeError, "rank 9 cannot train"),
        (["adapter={method: selective_lora, rank: 4}"], RecipeError, "between the steps of one run"),
        (
            ["objective=autolora_robust", "trainable=['*norm.weight']", "quantization=none"],
            RecipeError,
            "hears of the steps of one run",
        ),
    ],
)
def test_what_only_the_rows_or_the_model_can_tell_is_said_before_the_first_round(
    changes, error, said, recipe_file, tmp_path
):
    with pytest.raises(error, match=said):
        job_of(recipe_file, tmp_path, *changes).run.optimizer.step()


def test_shares_are_told_without_weights(recipe_file):
    told = share(recipe_of(recipe_file, "federate={clients: 3, rounds: 2, local_steps: 1}"))
    again = share(recipe_of(recipe_file, "federate={clients: 3, rounds: 2, local_steps: 1}"))
    assert told == again and sum(held["rows"] for held in told["clients"]) == 16
    with pytest.raises(RecipeError, match="how many clients"):
        share(recipe_of(recipe_file, "federate=null", "train.max_steps=3"))
    with pytest.raises(UsageError, match="profile"):
        train(recipe_of(recipe_file, CLIENTS), profile=True)


@pytest.mark.slow
def test_a_federation_that_is_killed_goes_on_to_the_bit(recipe_file, tmp_path):
    """SIGKILL in the middle of a round of the process."""
    overrides = [
        *ONE,
        "federate={clients: 3, rounds: 4, local_steps: 3, partition: even}",
        "train.keep_last=9",
    ]
    command = [sys.executable, "-m", "lrft", "federate", str(recipe_file("float32")), *overrides]
    federate(load_recipe(recipe_file("float32"), overrides), tmp_path / "whole")
    killed = subprocess.Popen([*command, "--out", str(tmp_path / "broken")], stderr=subprocess.DEVNULL)
    while not (tmp_path / "broken" / "checkpoints" / "step-2" / "manifest.json").exists():
        assert killed.poll() is None
        time.sleep(0.01)
    killed.send_signal(signal.SIGKILL)
    killed.wait()
    assert not (tmp_path / "broken" / "result.json").exists()
    subprocess.run([*command, "--out", str(tmp_path / "broken"), "--resume", "-q"], check=True)
    same(tmp_path / "broken", tmp_path / "whole")
