"""What a request must be before anybody reads it: keyed, small, and not slow."""

from __future__ import annotations

import asyncio
import hmac
import json
from collections.abc import Awaitable, Callable, MutableMapping
from contextlib import suppress
from typing import Any

from lrft.serve.protocol import fault

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

OPEN = ("/health",)  # asked by those who watch over the server and have no key
OVER = "lrft.over"  # in the scope of a request that is refused, of which nothing is awaited any more


class Refused(Exception):
    """Answered with an error, and the connection closed.

    Attributes:
        rest: whether more of the request may be on its way.
    """

    def __init__(self, status: int, message: str, rest: bool = False) -> None:
        super().__init__(message)
        self.status, self.rest = status, rest


class Guards:
    """An ASGI application before another.

    Args:
        key: that every request shows as a bearer; None asks for none.
        most_bytes: of a body.
        seconds: within which a body is here.
    """

    def __init__(self, app: App, key: str | None, most_bytes: int, seconds: float) -> None:
        self._app, self._key, self._most, self._seconds = app, key, most_bytes, seconds

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Let through what may pass."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        try:
            headers = {name.lower(): value for name, value in scope["headers"]}
            self._check_key(scope["path"], headers)
            body = await self._body(headers, receive)
        except Refused as refused:
            scope[OVER] = True
            await _refuse(send, refused, receive, self._seconds)
            return
        await self._app(scope, _once(body, receive), send)

    def _check_key(self, path: str, headers: MutableMapping[bytes, bytes]) -> None:
        if self._key is None or path in OPEN:
            return
        shown = headers.get(b"authorization", b"")
        if not hmac.compare_digest(shown, b"Bearer " + self._key.encode()):
            raise Refused(401, "give the server's key as `Authorization: Bearer KEY`", rest=True)

    async def _body(self, headers: MutableMapping[bytes, bytes], receive: Receive) -> bytes:
        said = headers.get(b"content-length", b"0")
        if not said.isdigit() or len(said) > 19 or int(said) > self._most:
            raise self._too_large(rest=True)
        parts, size = [], 0
        try:
            async with asyncio.timeout(self._seconds):
                while True:
                    message = await receive()
                    if message["type"] != "http.request":
                        raise Refused(400, "the connection broke before the request was whole")
                    parts.append(message.get("body", b""))
                    size += len(parts[-1])
                    more = message.get("more_body", False)
                    if size > self._most:
                        raise self._too_large(rest=more)
                    if not more:
                        return b"".join(parts)
        except TimeoutError:
            raise Refused(408, f"the request was not whole after {self._seconds:g} seconds") from None

    def _too_large(self, rest: bool) -> Refused:
        return Refused(413, f"a request may have {self._most:,} bytes (--max-body)", rest)


def _once(body: bytes, receive: Receive) -> Receive:
    """A body that was read, then whatever the connection says."""
    left = [body]

    async def again() -> MutableMapping[str, Any]:
        if left:
            return {"type": "http.request", "body": left.pop(), "more_body": False}
        return await receive()

    return again


async def _refuse(send: Send, refused: Refused, receive: Receive, seconds: float) -> None:
    content = json.dumps(fault(refused.status, str(refused))).encode()
    headers = [
        (b"content-type", b"application/json"),
        (b"content-length", str(len(content)).encode()),
        (b"connection", b"close"),
    ]
    if refused.status == 401:
        headers.append((b"www-authenticate", b"Bearer"))
    await send({"type": "http.response.start", "status": refused.status, "headers": headers})
    await send({"type": "http.response.body", "body": content, "more_body": True})
    if refused.rest:
        # Most clients read an answer after they have sent all; ended before, the connection takes it with it.
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                while (await receive()).get("more_body", False):
                    pass  # not kept
    await send({"type": "http.response.body", "body": b""})
