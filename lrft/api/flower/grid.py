"""Clients reached by Flower's messages."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Iterator, Sequence
from typing import Any

from flwr.app import ConfigRecord, Message, MessageType, RecordDict
from flwr.serverapp import Grid

from lrft.api.flower.participant import Begin
from lrft.api.flower.records import to_record, to_tensors
from lrft.build.aggregating import check_whole
from lrft.build.clients import Clients
from lrft.build.privacy import check_not_private
from lrft.build.reach import Answer, Numbers, stop_if_asked
from lrft.core import stop
from lrft.core.aggregate import Aggregator, Reply, Tensors, Turn, bytes_of
from lrft.core.notes import say
from lrft.model.trained import trained_tensors
from lrft.registry.errors import first_line
from lrft.registry.section import MOST_COUNTED

POLL = 0.5  # seconds between two looks at which nodes are there


class OnGrid:
    """Sends every client its message through Flower and waits for the answers.

    A client whose node is not connected, that fails, or that does not answer in time is left out of the round, which is
    told; one that has lost the start, as a new process on an emptied disk has, is sent it again.

    Args:
        timeout: seconds that a round may take, and that the clients of a round are waited for.
    """

    def __init__(self, grid: Grid, clients: Clients, aggregator: Aggregator, timeout: float) -> None:
        check_not_private(clients.recipe)
        check_whole(aggregator, clients.recipe)
        self.grid, self.clients, self.aggregator, self.timeout = grid, clients, aggregator, timeout
        self.nodes: dict[int, int] = {}  # client -> node
        self._strange: set[int] = set()  # nodes that are no client, or one that another node is
        self._begin: Begin | None = None

    def ask(self, turns: Sequence[Turn], held: Tensors) -> list[Answer]:
        stop_if_asked(turns[0].round, self.clients.asked.rounds)
        self._find([turn.client for turn in turns])
        reached = [turn for turn in turns if turn.client in self.nodes]
        sent = {turn: self._message(turn, held) for turn in reached}
        replies = self._send({turn: self._asking(turn, message, False) for turn, message in sent.items()})
        lacking = [turn for turn, reply in replies.items() if _lacks_start(reply)]
        for turn in lacking:
            del replies[turn]
        replies |= self._send({turn: self._asking(turn, sent[turn], True) for turn in lacking})
        found = []
        for turn in turns:
            if turn not in replies or _lacks_start(replies[turn]):
                say(f"round {turn.round + 1}: client {turn.client} did not answer; it is averaged without it")
            elif (answer := self._read(turn, sent[turn], replies[turn], held)) is not None:
                found.append(answer)
        stop_if_asked(turns[0].round, self.clients.asked.rounds)
        return found

    def _message(self, turn: Turn, held: Tensors) -> Tensors:
        """What the client is sent; where clients keep the model themselves, the whole of it, as nodes keep none."""
        return held if self.aggregator.to_all else self.aggregator.down(held, turn)

    def _find(self, clients: Sequence[int]) -> None:
        """Ask the nodes that are connected which clients they are, until all that are meant are there or time is up."""
        until = time.monotonic() + self.timeout
        while True:
            there = set(self.grid.get_node_ids())
            self.nodes = {client: node for client, node in self.nodes.items() if node in there}
            new = sorted(there - set(self.nodes.values()) - self._strange)
            asked = [Message(RecordDict(), node, MessageType.QUERY) for node in new]
            for place, reply in self._exchange(asked):
                if not reply.has_error():
                    self._meet(new[place], reply.content)
            if set(clients) <= self.nodes.keys() or time.monotonic() > until:
                return
            stop_if_asked(0, self.clients.asked.rounds)
            time.sleep(POLL)

    def _meet(self, node: int, content: Any) -> None:
        """Note which client a node is; one that does not say, or says what another does, is told and left alone."""
        try:
            client = int(content["who"]["client"])
        except (KeyError, TypeError, ValueError):
            client = -1
        if client not in range(self.clients.asked.clients) or client in self.nodes:
            self._strange.add(node)
            what = f"client {client}, which {'another node is' if client in self.nodes else 'there is not'}"
            say(f"node {node} says that it is {what}; it is not asked")
            return
        self.nodes[client] = node

    def _asking(self, turn: Turn, message: Tensors, whole: bool) -> Message:
        begin = self._started()
        asked = ConfigRecord({"round": turn.round, "start": begin.sum})
        content = RecordDict({"asked": asked, "message": to_record(message)})
        if whole:
            content["start"] = to_record(begin.tensors)
            content["plan"] = ConfigRecord({"plan": json.dumps(begin.plan), "day": begin.day})
        return Message(content, self.nodes[turn.client], MessageType.TRAIN)

    def _send(self, messages: dict[Turn, Message]) -> dict[Turn, Any]:
        """What came back, by turn."""
        found: dict[Turn, Any] = {}
        for place, reply in self._exchange(list(messages.values())):
            turn = list(messages)[place]
            if reply.has_error():
                say(f"round {turn.round + 1}: client {turn.client} failed: {reply.error.reason}")
            else:
                found[turn] = reply.content
        return found

    def _exchange(self, messages: Sequence[Message]) -> Iterator[tuple[int, Message]]:
        """The place of each message that is answered in time, and the answer.

        An answer is known by the message that it is to: of a node that is gone, the server's link answers itself.
        """
        names = list(self.grid.push_messages(messages)) if messages else []
        sent = {
            name: place for place, name in enumerate(names) if name
        }  # one that could not be sent has none
        until = time.monotonic() + self.timeout
        while sent:
            for reply in self.grid.pull_messages(list(sent)):
                yield sent.pop(reply.metadata.reply_to_message_id), reply
            if not sent or time.monotonic() > until or stop.asked() is not None:
                return
            time.sleep(POLL)

    def _read(self, turn: Turn, sent: Tensors, content: Any, held: Tensors) -> Answer | None:
        """An answer; None, once it is told, of what no client of this run would send."""
        try:
            return self._answer(turn, sent, content, held)
        except (AttributeError, KeyError, TypeError, ValueError, OverflowError, RuntimeError) as error:
            who = f"round {turn.round + 1}: client {turn.client}"
            say(
                f"{who} sent what is no answer ({type(error).__name__}: {first_line(error)}); it is averaged without it"
            )
            return None

    def _answer(self, turn: Turn, sent: Tensors, content: Any, held: Tensors) -> Answer:
        """A client's answer.

        Raises:
            ValueError, among others: it is none.
        """
        message = to_tensors(content["message"])
        told = content["numbers"]
        numbers = Numbers(float(told["loss"]), int(told["tokens"]), int(told["targets"]), float(told["lr"]))
        if not math.isfinite(numbers.loss + numbers.lr):
            raise ValueError("its loss or its rate is not finite")
        if int(told["examples"]) > MOST_COUNTED:
            raise ValueError(f"it says that it holds {int(told['examples']):,} rows")
        message = {name: value.to(self.clients.infos[0].param.device) for name, value in message.items()}
        reply = Reply(turn.client, int(told["examples"]), message)
        self.aggregator.check(held, reply, turn.round)
        alike = message.keys() == held.keys() and all(
            message[name].shape == held[name].shape for name in held
        )
        return Answer(reply, numbers, message if alike else None, bytes_of(sent))

    def _started(self) -> Begin:
        """The adapter as it is when the first round of this process begins, which clients are sent the changes of."""
        if self._begin is None:
            adaptation = self.clients.adaptation
            plan = {name: entry.record() for name, entry in adaptation.plan.items()}
            tensors = {name: value.clone() for name, value in trained_tensors(adaptation.model).items()}
            day = self.clients.text.renderer.today.isoformat()
            self._begin = Begin(tensors, json.loads(json.dumps(plan)), day)
        return self._begin


def _lacks_start(content: Any) -> bool:
    """Whether a client asks for the start; what is no answer at all is no such question."""
    try:
        return bool(content["numbers"]["lacks_start"])
    except (KeyError, TypeError):
        return False
