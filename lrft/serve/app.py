"""The routes: OpenAI's chat, completions and models, and for those who watch over it /health and /metrics."""

from __future__ import annotations

import json
import time
from collections.abc import AsyncIterator

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, PlainTextResponse, Response, StreamingResponse
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException

from lrft.registry.errors import LrftError
from lrft.registry.json import Json
from lrft.serve.asked import Asked, End, Fault, Piece
from lrft.serve.desk import Box, Desk, Wrong
from lrft.serve.protocol import Answer, ChatAsk, CompletionAsk, fault
from lrft.serve.voices import Voice
from lrft.serve.waiting import QueueFull

WATCHED = 0.5  # seconds between two looks at whether somebody still waits


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

    def described(name: str) -> dict[str, Json]:
        return {"id": name, "object": "model", "created": born, "owned_by": "lrft"}

    @app.get("/v1/models")
    async def models() -> Response:
        return JSONResponse({"object": "list", "data": [described(name) for name in desk.voices]})

    @app.get("/v1/models/{name:path}")
    async def model(name: str) -> Response:
        return JSONResponse(described(desk.voice(name).name))

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
