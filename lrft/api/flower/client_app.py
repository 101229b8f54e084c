"""Flower's client app: `client_app:app` answers which client it is, and trains when it is told to.

Of a node's configuration: `partition-id`, which client it is, as Flower's simulation sets it; `recipe` and `overrides`,
where they are other than the run's; `own-rows = true`, where all rows of its recipe are its own.
"""

from __future__ import annotations

import json
import shlex
from typing import Any

from flwr.app import ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

from lrft.api.flower.participant import Begin, Participant
from lrft.api.flower.records import to_record, to_tensors

START, PLAN = "start", "plan"  # what a node keeps of the first message of a run

app = ClientApp()
# By the sum of the start and all that a participant is made of: processes may be used again, by other runs too.
_made: dict[tuple[object, ...], Participant] = {}


@app.query()
def query(message: Message, context: Context) -> Message:
    """Which client this is."""
    return Message(RecordDict({"who": ConfigRecord({"client": _client(context)})}), reply_to=message)


@app.train()
def train(message: Message, context: Context) -> Message:
    """A round, or the question for the start where this node does not have it."""
    asked: Any = message.content["asked"]
    if START in message.content:
        context.state[START] = message.content[START]
        context.state[PLAN] = message.content[PLAN]
    participant = _participant(context, str(asked["start"]))
    if participant is None:
        return Message(RecordDict({"numbers": MetricRecord({"lacks_start": 1})}), reply_to=message)
    reply, numbers = participant.train(int(asked["round"]), to_tensors(message.content["message"]))
    told = {
        "lacks_start": 0,
        "examples": participant.rows,
        "loss": numbers.loss,
        "tokens": numbers.tokens,
        "targets": numbers.targets,
        "lr": numbers.lr,
    }
    content = RecordDict({"message": to_record(reply), "numbers": MetricRecord(told)})
    return Message(content, reply_to=message)


def _participant(context: Context, start: str) -> Participant | None:
    """The client on the start that the server means; None where this node does not have that."""
    run, node, client = context.run_config, context.node_config, _client(context)
    recipe = str(node.get("recipe", run["recipe"]))
    overrides = tuple(shlex.split(str(node.get("overrides", run.get("overrides", "")))))
    own, trusted = bool(node.get("own-rows", False)), bool(node.get("trust-remote-code", False))
    key = (start, client, recipe, overrides, own, trusted)
    if key not in _made:
        if START not in context.state:
            return None
        plan: Any = context.state[PLAN]
        begin = Begin(to_tensors(context.state[START]), json.loads(str(plan["plan"])), str(plan["day"]))
        if begin.sum != start:
            return None
        _made[key] = Participant(recipe, overrides, client, begin, own, trusted)
    return _made[key]


def _client(context: Context) -> int:
    return int(context.node_config["partition-id"])
