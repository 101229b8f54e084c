"""What every aggregator keeps to: rounds that follow from their number, counted messages, and a state that survives."""

from __future__ import annotations

import json
from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest
import torch

from lrft.api.training.train import train
from lrft.core.aggregate import Turn
from lrft.recipe.load import load_recipe
from lrft.registry.axes import AGGREGATORS
from tests.each import each
from tests.methods.aggregate.replies import held_of, lora, made, replies_of, trained_by
from tests.training.unbroken import goes_on_unbroken

SMOKE = Path(__file__).parents[2] / "recipes" / "smoke" / "federated"
NAMES = AGGREGATORS.names()
SETTINGS = {"hetlora": {"ranks": [3]}, "ferret": {"seeds": 6}}
EXACT = [name for name in NAMES if name not in ("ferret", "frl")]  # what one client sends is the model


def server_of(name, clients=3, chosen=None):
    return made(name, lora(), clients, chosen, **SETTINGS.get(name, {}))


@cache
def rounds_of(name):
    """The model before each of three rounds and after the last, with what was sent; two of three clients take part."""
    server, models, sent = server_of(name, 3, 2), [held_of(lora())], []
    for place, clients in enumerate(([0, 1], [1, 2], [0, 2])):
        trained = trained_by(models[-1], 2, seed=place)
        sent.append(replies_of(server, models[-1], trained, [3, 5], place, clients))
        models.append(server.aggregate(models[-1], sent[-1], place))
    return models, sent


@each("name", NAMES)
def test_a_server_that_was_killed_between_rounds_goes_on_to_the_bit(name):
    models, sent = rounds_of(name)
    before, after = server_of(name, 3, 2), server_of(name, 3, 2)
    before.aggregate(models[0], sent[0], 0)
    after.load_state_dict(before.state_dict())
    for place in (1, 2):
        found = after.aggregate(models[place], sent[place], place)
        assert all(torch.equal(found[key], value) for key, value in models[place + 1].items())


@each("name", NAMES)
def test_a_round_has_the_names_and_shapes_of_what_trains_and_changes_no_message(name):
    models, sent = rounds_of(name)
    assert all(torch.isfinite(value).all() for value in models[-1].values())
    assert {k: v.shape for k, v in models[-1].items()} == {k: v.shape for k, v in models[0].items()}
    kept = [{key: value.clone() for key, value in reply.message.items()} for reply in sent[2]]
    again = server_of(name, 3, 2)
    for place in range(3):
        again.aggregate(models[place], sent[place], place)
    for reply, before in zip(sent[2], kept, strict=True):
        assert all(torch.equal(value, before[key]) for key, value in reply.message.items())


@each("name", EXACT)
def test_one_client_is_the_average_and_so_are_equal_ones(name):
    held = held_of(lora())
    one = trained_by(held, 1)
    for trained in (one, one * 3):
        server = server_of(name, len(trained))
        found = server.aggregate(held, replies_of(server, held, trained), 0)
        torch.testing.assert_close(found, one[0], atol=1e-6, rtol=1e-6)


@each("name", NAMES)
def test_a_client_begins_with_the_servers_model(name):
    held, server = held_of(lora()), server_of(name)
    message = server.down(held, Turn(0, 0))
    found = server.taken(message, held, Turn(0, 0))
    assert all(torch.equal(found[key], value) for key, value in held.items())


def recipe_of(name, tiny, *overrides):
    few = ["data.train.limit=24", "data.eval.limit=2", "train.device=cpu", "train.keep_last=9"]
    return load_recipe(SMOKE / f"{name}.yaml", [f"model.name={tiny()}", *few, *overrides])


def test_every_aggregator_has_a_smoke_recipe():
    assert sorted(path.stem for path in SMOKE.glob("[!_]*.yaml")) == NAMES
    for name in NAMES:
        federate = load_recipe(SMOKE / f"{name}.yaml", ["model.name=x/y"]).recipe.federate
        assert federate.aggregate.method == name


@pytest.mark.parametrize(
    "name",
    [name if name == "fed_stale" else pytest.param(name, marks=pytest.mark.slow) for name in NAMES],
)
def test_a_smoke_recipe_trains_and_goes_on_unbroken_after_a_cut(name, tiny, tmp_path):
    loaded = recipe_of(name, tiny)
    result = train(loaded, tmp_path / "whole")
    lines = [json.loads(line) for line in (tmp_path / "whole" / "metrics.jsonl").read_text().splitlines()]
    assert result["step"] == len(lines) == 2
    assert sum(line["bytes_up"] for line in lines) == result["federation"]["bytes_up"] > 0
    if {"frozen_A", "core_matrix"} & AGGREGATORS.declared(name).requires:
        assert all(line["averaging_error_relative"] < 1e-6 for line in lines)
    goes_on_unbroken(loaded, tmp_path / "whole", 1, tmp_path / "broken")


@each("name", NAMES)
def test_a_reply_from_elsewhere_is_looked_at_before_it_is_summed(name):
    """Every message that a client can make passes, and none with a part missing, too much, of another shape or type,
    not finite, or of no rows.
    """
    models, sent = rounds_of(name)
    server = server_of(name, 3, 2)
    for place in range(3):
        for reply in sent[place]:
            server.check(models[place], reply, place)
        server.aggregate(models[place], sent[place], place)
    good = sent[0][0]
    key, value = next(iter(good.message.items()))
    odd = {
        "missing": {k: v for k, v in good.message.items() if k != key},
        "of nothing that is averaged": {**good.message, "more": value},
        "of torch": {**good.message, key: value.to(torch.complex64)},
    }
    if value.is_floating_point():
        odd["not finite"] = {**good.message, key: torch.full_like(value, float("nan"))}
    shape = {**good.message, key: torch.cat([value, value])}
    said = "coordinates are not" if name == "ferret" else "no order|has shape"
    server = server_of(name, 3, 2)
    for what, message in [*odd.items(), (said, shape)]:
        with pytest.raises(ValueError, match=what):
            server.check(models[0], replace(good, message=message), 0)
    for rows in (0, -3):
        with pytest.raises(ValueError, match="rows"):
            server.check(models[0], replace(good, examples=rows), 0)


def test_an_order_that_names_an_entry_twice_and_coordinates_of_too_many_directions_are_refused():
    models, sent = rounds_of("frl")
    key = next(iter(models[0]))
    twice = {**sent[0][0].message, key: torch.zeros_like(sent[0][0].message[key])}
    with pytest.raises(ValueError, match="sent no order"):
        server_of("frl", 3, 2).check(models[0], replace(sent[0][0], message=twice), 0)
    models, sent = rounds_of("ferret")
    counts = sent[0][0].message["counts"]
    many = {"counts": torch.full_like(counts, 7), "coordinates": torch.zeros(7 * len(counts))}
    with pytest.raises(ValueError, match="coordinates are not 2 to 6"):
        server_of("ferret", 3, 2).check(models[0], replace(sent[0][0], message=many), 0)
