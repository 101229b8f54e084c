"""What a node may send to the server: a reply that no client of the run would make is told and left out."""

from __future__ import annotations

import math

import pytest
import torch

from lrft.build.adapt import adapt
from lrft.build.dataset import read_text
from lrft.build.federation import assemble_federation
from lrft.build.trained_values import read
from lrft.core.aggregate import Turn
from lrft.recipe.load import load_recipe
from lrft.recipe.resolved import recipe_hash
from lrft.registry.errors import LrftError
from lrft.training.device import make_accelerator
from lrft.training.folder import RunFolder

flower = pytest.importorskip("flwr.app", reason="the extra `flower` is not installed")
FEW = ("model.dtype=float32", "train.device=cpu")
NUMBERS = {"loss": 1.0, "tokens": 5, "targets": 4, "lr": 0.1, "examples": 8, "lacks_start": 0}
EVERY = ("fedavg", "fed_sb", "fed_stale", "ferret", "ffa_lora", "frl", "hetlora", "lora_fair")


@pytest.fixture
def grid(tiny, tmp_path):
    """`grid(name)` -> the server's end, its rounds, and a message with what a client sends back."""
    from lrft.api.flower.grid import OnGrid

    def make(name):
        recipe = load_recipe(f"smoke/federated/{name}", (f"model.name={tiny()}", *FEW)).recipe
        text = read_text(recipe)
        job = assemble_federation(
            recipe,
            RunFolder(tmp_path / name),
            text,
            adapt(recipe, text=text),
            make_accelerator("cpu", "float32"),
            recipe_hash(recipe),
        )
        rounds, held = job.run.optimizer, read(job.run.parameters)
        made = OnGrid(None, rounds.clients, rounds.aggregator, 1.0)
        turn = Turn(1, 0)
        (here,) = rounds.reach.ask([turn], held)
        message = {key: flower.Array(value.numpy()) for key, value in here.reply.message.items()}

        def answer(numbers=NUMBERS, message=message, **more):
            return made._read(turn, made._message(turn, held), {"numbers": numbers, "message": message}, held)

        return made, rounds, message, answer

    return make


@pytest.mark.parametrize("name", EVERY)
def test_what_a_client_sends_is_taken_and_what_it_would_not_send_is_not(grid, name, capsys):
    _, _, message, answer = grid(name)
    assert answer() is not None
    first = next(iter(message))
    for numbers in (
        {},
        {**NUMBERS, "examples": 0},
        {**NUMBERS, "examples": 10**15},
        {**NUMBERS, "loss": math.nan},
    ):
        assert answer(numbers=numbers) is None
    for odd in ({}, {**message, "more": message[first]}, {**message, first: "a text"}):
        assert answer(message=odd) is None
    held = torch.from_numpy(message[first].numpy().copy())
    if held.is_floating_point():
        assert answer(message={**message, first: flower.Array((held * math.inf).numpy())}) is None
    assert capsys.readouterr().err.count("client 1 sent what is no answer") >= 7


def test_a_node_that_is_no_client_or_one_that_another_is_is_not_asked(grid, capsys):
    made, *_ = grid("fedavg")
    for node, client in ((7, 1), (8, 1), (9, 99), (10, "x")):
        made._meet(node, {"who": {"client": client}})
    made._meet(11, {})
    assert made.nodes == {1: 7} and made._strange == {8, 9, 10, 11}
    assert capsys.readouterr().err.count("it is not asked") == 4


def test_messages_that_fit_nothing_end_the_round_in_a_sentence(grid):
    _, rounds, *_ = grid("fedavg")
    turn, held = Turn(1, 0), read(rounds.clients.infos)
    (here,) = rounds.reach.ask([turn], held)
    name = next(iter(here.reply.message))
    here.reply.message[name] = torch.zeros(3, 5, 7)
    rounds.reach.ask = lambda turns, held: [here]
    rounds.run = type("Run", (), {"step": 0})()
    with pytest.raises(LrftError, match=r"fedavg: the messages of round 1 do not fit what trains"):
        rounds.step()
