"""Connections that say nothing, or take nothing, do not keep others out."""

from __future__ import annotations

import asyncio
import http.client
import json
import logging
import resource
import socket
import threading
import time
from contextlib import suppress

import pytest

pytest.importorskip("uvicorn", reason="the extra `serve` is not installed")


@pytest.fixture
def port():
    """`port(most, silent, ...)` -> the port of a server of empty answers with at most so many connections."""
    import uvicorn

    from lrft.serve.connections import AT_ONCE, end_the_late, protocol
    from lrft.serve.guards import Guards

    async def app(scope, receive, send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"0")]})
        await send({"type": "http.response.body", "body": b""})

    started = []

    def start(most, silent, key=None, most_body=2**20):
        door = socket.socket()
        door.bind(("127.0.0.1", 0))
        kind = protocol(most)
        guarded = Guards(app, key, most_body, 30.0)
        config = uvicorn.Config(
            guarded, http=kind, backlog=AT_ONCE, lifespan="off", ws="none", log_config=None
        )
        server = uvicorn.Server(config)
        server.install_signal_handlers = lambda: None

        async def run() -> None:
            watch = asyncio.create_task(end_the_late(server.server_state.connections, silent, 60.0))
            await server.serve(sockets=[door])
            watch.cancel()

        thread = threading.Thread(target=lambda: asyncio.run(run()), daemon=True)
        thread.start()
        while not server.started:
            time.sleep(0.01)
        started.append((server, thread, door))
        return door.getsockname()[1]

    yield start
    for server, thread, door in started:
        server.should_exit = True
        thread.join(10)
        door.close()


def ask(port) -> bytes:
    with socket.create_connection(("127.0.0.1", port), timeout=5) as one:
        one.sendall(b"GET / HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n")
        return one.recv(100)


def test_more_than_there_is_room_for_are_ended_those_first_that_say_nothing(port):
    at = port(4, 60.0)
    silent = [socket.create_connection(("127.0.0.1", at), timeout=5) for _ in range(24)]
    assert ask(at).startswith(b"HTTP/1.1 200")
    silent[0].settimeout(5)
    with suppress(ConnectionResetError):
        assert silent[0].recv(1) == b""
    for one in silent:
        one.close()


@pytest.mark.parametrize("sent", [b"", b"POST / HTTP/1.1\r\nhost: x\r\n"])
def test_a_head_that_does_not_come_is_not_waited_for(port, sent):
    at = port(4, 0.3)
    with socket.create_connection(("127.0.0.1", at), timeout=5) as one:
        one.sendall(sent)
        began = time.monotonic()
        with suppress(ConnectionResetError):
            assert one.recv(100) == b""
    assert time.monotonic() - began < 4
    assert ask(at).startswith(b"HTTP/1.1 200")


def test_there_are_fewer_connections_than_files():
    from lrft.serve.connections import MOST, RESERVED, room_for_connections

    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (300, before[1]))
        room = room_for_connections()
        soft = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
        assert 1 <= room <= MOST and room <= soft - RESERVED and soft >= 300
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)


def test_what_belongs_to_no_request_is_one_sentence():
    from lrft.serve.connections import told_once

    said: list[str] = []
    tell = told_once(said.append)
    for _ in range(3):
        tell(None, {"message": "socket.accept() failed", "exception": OSError(24, "Too many open files")})
    assert said == ["lrft serve: socket.accept() failed (OSError: [Errno 24] Too many open files)"]


def test_what_uvicorn_logs_is_a_sentence_the_first_time(capfd):
    """Strangers can send bytes that are no request as often as they like, and an error of lrft's has no traceback."""
    from lrft.serve.connections import ToldOnce

    said: list[str] = []
    with ToldOnce(said.append).instead():
        logger = logging.getLogger("uvicorn.error")
        for _ in range(50):
            logger.warning("Invalid HTTP request received.")
            logger.error("Exception in ASGI application\n", exc_info=ValueError("odd"))
            logger.info("Started server process")
    assert said == [
        "lrft serve: Invalid HTTP request received.",
        "lrft serve: Exception in ASGI application (ValueError: odd)",
    ]
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize("size", [3_000_000, 40_000_000])
def test_who_sends_too_much_reads_why_once_all_is_sent(port, size):
    """A client writes its whole request before it reads; an end of the connection before would be all it sees."""
    at = port(4, 60.0, key="a key of many letters", most_body=1000)
    right = {"authorization": "Bearer a key of many letters"}
    for headers, status in (({}, 401), (right, 413)):
        for chunked in (False, True):
            content = iter([b"x" * 2**20] * (size >> 20)) if chunked else b"x" * size
            line = http.client.HTTPConnection("127.0.0.1", at, timeout=20)
            line.request("POST", "/v1/completions", content, headers, encode_chunked=chunked)
            answer = line.getresponse()
            assert answer.status == status and json.loads(answer.read())["error"]["message"]
            line.close()
    assert ask(at).startswith(b"HTTP/1.1 401")


def test_who_is_refused_and_goes_on_to_send_is_not_waited_for(port):
    at = port(2, 0.4, key="a key of many letters", most_body=1000)
    lines = [socket.create_connection(("127.0.0.1", at), timeout=5) for _ in range(6)]
    for one in lines:
        one.sendall(b"POST / HTTP/1.1\r\nhost: x\r\ncontent-length: 5000000\r\n\r\nx")
    assert b" 401 " in lines[-1].recv(4096)
    assert b" 401 " in ask(at)  # there is room for others, who are asked for the key
    began = time.monotonic()
    with suppress(ConnectionResetError):
        while lines[-1].recv(4096):
            pass
    assert time.monotonic() - began < 4
    for one in lines:
        one.close()
