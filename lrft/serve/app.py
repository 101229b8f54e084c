"""The routes: OpenAI's chat, completions and models, and for those who watch over it /health and /metrics."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, PlainTextResponse, Response, StreamingResponse
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException

from lrft.registry.errors import LrftError
from lrft.registry.json import Json
from lrft.serve.asked import Asked, End, Event, Fault, Piece
from lrft.serve.batcher import Batcher
from lrft.serve.protocol import Answer, ChatAsk, CompletionAsk, fault
from lrft.serve.voices import Voice
from lrft.serve.waiting import QueueFull

WATCHED = 0.5  # seconds between two looks at whether somebody still waits


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


def make_app(desk: Desk) -> FastAPI:
    """The application, without guards."""
    app = FastAPI(title="lrft", openapi_url=None, docs_url=None, redoc_url=None)
    batcher, born = desk.batcher, int(time.time())

    @app.post("/v1/chat/completions")
    async def chat(ask: ChatAsk, request: Request) -> Response:
        voice = desk.voice(ask.model)
        return await _answer(desk, voice, ask, await run_in_threadpool(desk.chat_ids, voice, ask), request)

    @app.post("/v1/completions")
    async def complete(ask: CompletionAsk, request: Request) -> Response:
        voice = desk.voice(ask.model)
        return await _answer(desk, voice, ask, await run_in_threadpool(desk.completion_ids, ask), request)

    @app.get("/v1/models")
    async def models() -> Response:
        found: list[Json] = [
            {"id": name, "object": "model", "created": born, "owned_by": "lrft"} for name in desk.voices
        ]
        return JSONResponse({"object": "list", "data": found})

    @app.get("/health")
    async def health() -> Response:
        return JSONResponse({"status": "ok"}) if batcher.alive else JSONResponse({"status": "dead"}, 503)

    @app.get("/metrics")
    async def metrics() -> Response:
        store = batcher.store
        now = {
            **{"rows": batcher.running, "waiting": len(batcher.queue), "adapters": len(store.resident)},
            **{"pages_free": store.pages.free, "pages_total": store.pages.total},
            **{"adapter_loads_total": store.loads, "adapter_evictions_total": store.evictions},
        }
        return PlainTextResponse(batcher.counts.text(now), media_type="text/plain; version=0.0.4")

    _answer_faults(app)
    return app


def _answer_faults(app: FastAPI) -> None:
    @app.exception_handler(Wrong)
    async def wrong(_: Request, error: Wrong) -> Response:
        return _fault(error.status, str(error), error.code)

    @app.exception_handler(RequestValidationError)
    async def invalid(_: Request, error: RequestValidationError) -> Response:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"] if part != "body") or "the body"
        return _fault(400, f"{where[:200]}: {str(first['msg'])[:300]}")

    @app.exception_handler(LrftError)
    async def refused(_: Request, error: LrftError) -> Response:
        return _fault(400, str(error))

    @app.exception_handler(QueueFull)
    async def full(_: Request, error: QueueFull) -> Response:
        return _fault(429, "so many answers wait already that one more is not taken; ask again later")

    @app.exception_handler(ValueError)
    async def no_value(_: Request, error: ValueError) -> Response:
        return _fault(400, str(error)[:300])

    @app.exception_handler(HTTPException)
    async def http(_: Request, error: HTTPException) -> Response:
        return _fault(error.status_code, str(error.detail))


def _fault(status: int, message: str, code: str | None = None) -> Response:
    headers = {"Retry-After": "1"} if status == 429 else None
    return JSONResponse(fault(status, message, code), status, headers=headers)


async def _answer(
    desk: Desk, voice: Voice, ask: ChatAsk | CompletionAsk, ids: list[int], request: Request
) -> Response:
    box = Box()
    asked = desk.asked(voice, ask, ids, box)
    desk.batcher.queue.put(asked)
    answer = Answer(isinstance(ask, ChatAsk), ask.model, len(ids))
    if ask.stream:
        usage = ask.stream_options is not None and ask.stream_options.include_usage
        return StreamingResponse(_pieces(asked, answer, box, usage, request), media_type="text/event-stream")
    try:
        return await _whole(answer, box, request)
    finally:
        asked.cancel()


async def _whole(answer: Answer, box: Box, request: Request) -> Response:
    text = ""
    while True:
        event = await box.get(WATCHED)
        if isinstance(event, Piece):
            text += event.text
        elif isinstance(event, End):
            return JSONResponse(answer.whole(text, event.reason, event.tokens))
        elif isinstance(event, Fault):
            return _fault(event.status, event.message)
        elif await request.is_disconnected():
            return Response(status_code=499)


async def _pieces(
    asked: Asked, answer: Answer, box: Box, usage: bool, request: Request
) -> AsyncIterator[str]:
    """Server-sent events; who leaves in the middle ends the computing too."""
    try:
        if answer.chat:
            yield _event(answer.piece("", first=True))
        while True:
            event = await box.get(WATCHED)
            if isinstance(event, Piece):
                yield _event(answer.piece(event.text))
            elif isinstance(event, Fault):
                yield _event(fault(event.status, event.message))
                return
            elif isinstance(event, End):
                yield _event(answer.piece("", event.reason))
                if usage:
                    yield _event(answer.counted(event.tokens))
                yield "data: [DONE]\n\n"
                return
            elif await request.is_disconnected():
                return
    finally:
        asked.cancel()


def _event(document: dict[str, Json]) -> str:
    return f"data: {json.dumps(document, ensure_ascii=False)}\n\n"
