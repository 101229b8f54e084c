"""Flower's apps, joined by a grid in this process: what fails, is killed or forgets, and what it then averages to."""

from __future__ import annotations

import json

import pytest

flower = pytest.importorskip("flwr.app")

from lrft.api.flower import client_app, server_app  # noqa: E402
from lrft.api.training.federate import federate  # noqa: E402
from lrft.registry.errors import LrftError  # noqa: E402
from tests.training.unbroken import same  # noqa: E402

pytestmark = pytest.mark.slow

FEW = "data.train.limit=24 data.eval.limit=2 train.device=cpu train.keep_last=9 data.date=2026-11-29"


class Grid:
    """Nodes of this process; `fails(client, round)` says which message is answered by an error."""

    def __init__(self, config, fails=lambda client, round: False):
        self.config, self.fails, self.states, self.sent = config, fails, {}, []
        self.count, self.waiting = 0, {}

    def get_node_ids(self):
        return [11, 12, 13]

    def push_messages(self, messages):
        identifiers = [f"message {self.count + place}" for place in range(len(messages))]
        self.count += len(messages)
        for identifier, message in zip(identifiers, messages, strict=True):
            message.metadata.__dict__["_message_id"] = identifier
            self.waiting[identifier] = message
        return identifiers

    def pull_messages(self, identifiers):
        """One answer at a time, the last message first."""
        return [self._answer(self.waiting.pop(max(identifiers, key=lambda one: int(one.split()[1]))))]

    def _answer(self, message):
        node = message.metadata.dst_node_id
        state = self.states.setdefault(node, flower.RecordDict())
        context = flower.Context(1, node, {"partition-id": node - 11}, state, dict(self.config))
        if message.metadata.message_type == "query":
            return client_app.query(message, context)
        asked = message.content["asked"]
        self.sent.append((node - 11, asked["round"], "start" in message.content))
        if self.fails(node - 11, asked["round"]):
            return flower.Message(flower.Error(0, "killed"), reply_to=message)
        client_app._made.clear()  # every message meets a new process
        return client_app.train(message, context)


@pytest.fixture
def run(tiny, tmp_path, monkeypatch):
    """`run(name, folder, fails)` -> the grid, after the server app has made the rounds of the smoke recipe."""
    monkeypatch.chdir(tmp_path)
    from flwr.supercore.task_identity import TaskIdentity  # which a process of Flower's has

    for name in ("_run_id", "_task_id", "_node_id"):
        monkeypatch.setattr(TaskIdentity, name, 1)

    def call(name, folder, fails=lambda client, round: False, more=""):
        overrides = f"model.name={tiny()} {FEW} {more}"
        config = {
            "recipe": f"smoke/federated/{name}",
            "out": str(folder),
            "overrides": overrides,
            "timeout": 5.0,
        }
        grid = Grid(config, fails)
        server_app.main(grid, flower.Context(1, 0, {}, flower.RecordDict(), config))
        return grid

    return call


@pytest.mark.parametrize("name", ["fed_sb", "hetlora", "frl"])
def test_rounds_over_flower_are_those_of_the_clients_in_turn(name, run, tiny, tmp_path):
    run(name, tmp_path / "flower")
    overrides = [f"model.name={tiny()}", *FEW.split()]
    federate(f"smoke/federated/{name}", tmp_path / "here", overrides=overrides)
    lines = [
        [json.loads(line) for line in (tmp_path / where / "metrics.jsonl").read_text().splitlines()]
        for where in ("flower", "here")
    ]
    for there, here in zip(*lines, strict=True):
        assert {key: there[key] for key in ("loss", "eval_loss", "bytes_up", "clients")} == {
            key: here[key] for key in ("loss", "eval_loss", "bytes_up", "clients")
        }


def test_a_client_that_is_killed_is_left_out_and_comes_back(run, tmp_path, capsys):
    grid = run("ffa_lora", tmp_path / "run", lambda client, round: client == 1 and round == 0)
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [line["clients"] for line in lines] == [2, 3]
    assert "round 1: client 1 did not answer; it is averaged without it" in capsys.readouterr().err
    assert (1, 1, True) in grid.sent  # it is given the start once it is there
    assert grid.sent.count((0, 1, True)) == 0  # and the others not again


def test_a_client_that_sends_what_cannot_be_averaged_is_left_out_and_comes_back(
    run, tmp_path, capsys, monkeypatch
):
    """As one whose numbers have overflowed, one of another version, or one that says that it holds no rows."""
    answer = client_app.train

    def spoilt(message, context):
        reply = answer(message, context)
        client, round = context.node_config["partition-id"], message.content["asked"]["round"]
        if "message" not in reply.content or round:
            return reply
        sent = reply.content["message"]
        if client == 0:
            name = next(iter(sent))
            sent[name] = flower.Array(sent[name].numpy() + float("nan"))
        elif client == 1:
            reply.content["numbers"] = flower.MetricRecord({**reply.content["numbers"], "examples": 0})
        return reply

    monkeypatch.setattr(client_app, "train", spoilt)
    run("ffa_lora", tmp_path / "run")
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [line["clients"] for line in lines] == [1, 3]
    said = capsys.readouterr().err
    assert "round 1: client 0 sent what is no answer (ValueError: " in said and "not finite" in said
    assert "round 1: client 1 sent what is no answer (ValueError: it says that it holds 0 rows)" in said


def test_a_round_without_any_client_ends_the_run_and_a_new_server_goes_on(run, tmp_path):
    run("fed_stale", tmp_path / "whole")
    with pytest.raises(LrftError, match="no client answered in round 2; 1 are saved"):
        run("fed_stale", tmp_path / "broken", lambda client, round: round == 1)
    run("fed_stale", tmp_path / "broken")
    same(tmp_path / "broken", tmp_path / "whole")
