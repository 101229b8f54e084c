"""A client in a process of its own: it trains as it would have in turn with others, on its own rows or its share."""

from __future__ import annotations

import json

import pytest
import torch

from lrft.api.flower.participant import Begin, Participant
from lrft.build.adapt import adapt
from lrft.build.dataset import read_text
from lrft.build.federation import assemble_federation
from lrft.build.trained_values import read
from lrft.core.aggregate import Turn
from lrft.model.trained import trained_tensors
from lrft.recipe.load import load_recipe
from lrft.recipe.resolved import recipe_hash
from lrft.registry.errors import DataError
from lrft.training.device import make_accelerator
from lrft.training.folder import RunFolder

FEW = ["data.train.limit=24", "data.eval.limit=2", "train.device=cpu"]


@pytest.fixture
def server(tiny, tmp_path):
    """`server(name)` -> the recipe's overrides, its job, and what a client is told of it."""

    def make(name):
        overrides = (f"model.name={tiny()}", *FEW)
        recipe = load_recipe(f"smoke/federated/{name}", overrides).recipe
        text = read_text(recipe, today="2026-11-29")
        adaptation = adapt(recipe, text=text)
        folder = RunFolder(tmp_path / name)
        job = assemble_federation(
            recipe, folder, text, adaptation, make_accelerator("cpu", "float32"), recipe_hash(recipe)
        )
        plan = json.loads(json.dumps({site: entry.record() for site, entry in adaptation.plan.items()}))
        tensors = {key: value.clone() for key, value in trained_tensors(adaptation.model).items()}
        return overrides, job, Begin(tensors, plan, "2026-11-29")

    return make


def test_a_client_elsewhere_sends_what_it_would_have_sent_here(server):
    """To the bit, where the start is found from gradients that the client never computes."""
    overrides, job, begin = server("fed_sb")
    elsewhere = Participant("smoke/federated/fed_sb", overrides, 1, begin, own_rows=False)
    rounds, start = job.run.optimizer, read(job.run.parameters)
    turn = Turn(1, 0)
    sent, numbers = elsewhere.train(0, rounds.aggregator.down(start, turn))
    (here,) = rounds.reach.ask([turn], start)
    assert here.reply.examples == elsewhere.rows and here.numbers == numbers
    assert sent.keys() == here.reply.message.keys()
    assert all(torch.equal(value, here.reply.message[name]) for name, value in sent.items())


def test_all_rows_may_be_a_clients_own_and_a_client_that_there_is_not_is_refused(server):
    overrides, _, begin = server("fedavg")
    assert Participant("smoke/federated/fedavg", overrides, 2, begin, own_rows=True).rows == 24
    with pytest.raises(DataError, match=r"client 3: federate\.clients has 3"):
        Participant("smoke/federated/fedavg", overrides, 3, begin, own_rows=True)


def test_a_start_is_known_by_its_names_and_values_and_by_plan_and_day(server):
    _, _, begin = server("ffa_lora")
    again = Begin({name: value.clone() for name, value in begin.tensors.items()}, begin.plan, begin.day)
    assert again.sum == begin.sum
    site, *_ = begin.plan
    scaled = {**begin.plan[site], "settings": {**begin.plan[site]["settings"], "alpha": 1.5}}
    for other in (
        Begin(begin.tensors, begin.plan, "2026-11-30"),
        Begin(begin.tensors, {**begin.plan, site: scaled}, begin.day),
    ):
        assert other.sum != begin.sum
    next(iter(again.tensors.values())).view(-1)[0] += 1
    assert again.sum != begin.sum
