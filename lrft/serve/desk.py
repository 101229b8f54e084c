"""`Desk`: from a request that was read to an answer to be computed."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass

from lrft.serve.asked import Asked, Event
from lrft.serve.batcher import Batcher
from lrft.serve.protocol import ChatAsk, CompletionAsk
from lrft.serve.voices import Voice


class Wrong(Exception):
    """A request that is not done, and why."""

    def __init__(self, status: int, message: str, code: str | None = None) -> None:
        super().__init__(message)
        self.status, self.code = status, code


@dataclass(frozen=True)
class Offer:
    """What requests are held to.

    Attributes:
        most_tokens: new tokens of an answer.
        seconds: from the request to the end of the answer.
    """

    most_tokens: int = 1024
    seconds: float = 300.0


class Desk:
    """Makes answers to be computed of requests."""

    def __init__(self, batcher: Batcher, voices: dict[str, Voice], offer: Offer) -> None:
        self.batcher, self.voices, self.offer = batcher, voices, offer

    def voice(self, name: str) -> Voice:
        """Who is asked."""
        if name not in self.voices:
            known = ", ".join(self.voices)
            raise Wrong(404, f"there is no model {name[:80]!r}; there are {known}", "model_not_found")
        return self.voices[name]

    def chat_ids(self, voice: Voice, ask: ChatAsk) -> list[int]:
        """Tokens of a conversation, by the template and the format of the run."""
        turns = [turn.said() for turn in ask.messages]
        if not voice.talks and len(turns) == 1 and turns[0]["role"] == "user":
            return voice.asker.ids(voice.asker.text(str(turns[0]["content"])))
        return voice.asker.ids(voice.asker.row({"messages": list(turns)}))

    def completion_ids(self, ask: CompletionAsk) -> list[int]:
        """Tokens of a text as it is, or those that were given."""
        subject = self.batcher.subject
        if isinstance(ask.prompt, str):
            found: list[int] = subject.tokenizer(ask.prompt)["input_ids"]
            return found
        size = subject.hf.get_input_embeddings().num_embeddings
        if max(ask.prompt) >= size:
            raise Wrong(400, f"prompt: the model has tokens 0 to {size - 1}, and {max(ask.prompt)} is none")
        return ask.prompt

    def asked(self, voice: Voice, ask: ChatAsk | CompletionAsk, ids: list[int], box: Box) -> Asked:
        """The answer to compute."""
        most = ask.most or self.offer.most_tokens
        if most > self.offer.most_tokens:
            raise Wrong(
                400, f"max_tokens {most}: this server gives at most {self.offer.most_tokens} (--max-tokens)"
            )
        positions = self.batcher.subject.positions
        room = min(positions or self.batcher.queue.limits.tokens, self.batcher.queue.limits.tokens)
        if not ids:
            raise Wrong(400, "the prompt has no token; give it a text")
        if ask.most is None:
            most = min(most, room - len(ids))
        if most < 1 or len(ids) + most > room:
            raise Wrong(
                400,
                f"the prompt has {len(ids)} tokens and {max(most, 1)} are asked for, of {room} in all",
                "context_length_exceeded",
            )
        deadline = time.monotonic() + self.offer.seconds
        return Asked(voice.adapter, ids, most, voice.stop_ids, box.put, ask.sampling(), ask.stops(), deadline)


class Box:
    """Events on their way from the thread that computes to the one that answers."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._events: asyncio.Queue[Event] = asyncio.Queue()

    def put(self, event: Event) -> None:
        """From any thread."""
        if not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._events.put_nowait, event)

    async def get(self, seconds: float | None = None) -> Event | None:
        """The next one, or None after so long."""
        try:
            return await asyncio.wait_for(self._events.get(), seconds)
        except TimeoutError:
            return None
