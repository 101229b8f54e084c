"""`serve`: the port, the thread that computes and the one that answers, from the first signal to the last answer."""

from __future__ import annotations

import asyncio
import ipaddress
import os
import socket
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import uvicorn

from lrft.core import stop
from lrft.core.notes import say
from lrft.registry.errors import Interrupted, LrftError, UsageError
from lrft.serve.app import make_app
from lrft.serve.batcher import Batcher
from lrft.serve.connections import (
    AT_ONCE,
    KEPT,
    ToldOnce,
    end_the_late,
    protocol,
    room_for_connections,
    told_once,
)
from lrft.serve.desk import Desk, Offer
from lrft.serve.guards import Guards
from lrft.serve.pages import Pages
from lrft.serve.store import Store
from lrft.serve.voices import Choir, gather
from lrft.serve.waiting import Limits

KEY = "LRFT_SERVE_KEY"  # the variable that holds the key
BODY_SECONDS = 30.0
LOOKED = 0.1  # seconds between two looks at whether to stop


@dataclass(frozen=True)
class Settings:
    """How a server is run.

    Attributes:
        host, port: where it listens; port 0 is a free one.
        adapter_bytes: of memory for adapters.
        most_body: bytes of a request.
        drain: seconds that answers have to end in after a signal.
        key: that requests have to show; None asks for none, which only a loopback address may.
    """

    host: str = "127.0.0.1"
    port: int = 8000
    adapter_bytes: int = 2**30
    most_body: int = 2**20
    drain: float = 30.0
    key: str | None = None
    limits: Limits = field(default_factory=Limits)
    offer: Offer = field(default_factory=Offer)

    def check(self) -> None:
        """Refuse what would let in anybody, or serve nobody.

        Raises:
            UsageError: names the option.
        """
        if self.key is None and not is_loopback(self.host):
            raise UsageError(
                f"--host {self.host}: others than this machine would reach it, so a key is needed; set {KEY}"
            )
        if self.key is not None and (
            len(self.key) < 16 or not self.key.isascii() or not self.key.isprintable()
        ):
            raise UsageError(f"{KEY}: a key has at least 16 printable ASCII characters")
        if not 0 <= self.port < 65536:
            raise UsageError(f"--port {self.port}: ports are 0 to 65535")
        counts = {
            "--rows": self.limits.rows,
            "--queue": self.limits.waiting,
            "--cache-tokens": self.limits.tokens,
            "--max-tokens": self.offer.most_tokens,
        }
        for name, value in counts.items():
            if value < 1:
                raise UsageError(f"{name} {value}: give at least 1")
        for name, seconds in {"--timeout": self.offer.seconds, "--drain": self.drain}.items():
            if not 0 < seconds < float("inf"):
                raise UsageError(f"{name} {seconds:g}: give seconds above 0")


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches it."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def serve(
    runs: Sequence[Path | str],
    settings: Settings | None = None,
    trust_remote_code: bool = False,
    ready: Callable[[str], None] | None = None,
) -> None:
    """Answer over HTTP until a signal comes; then what is being answered is ended, and nothing new begun.

    Args:
        runs: see `lrft.serve.voices.gather`.
        ready: hears the address as soon as it answers.

    Raises:
        UsageError: the port is taken, or something cannot be served; nothing listens.
        Interrupted: a signal came, and it has ended; its record is what was done.
    """
    settings = settings or Settings()
    settings.check()
    door = _bind(settings)  # before the model is loaded, which takes long
    batcher: Batcher | None = None

    def kept() -> str:
        return "nothing was answered" if batcher is None else f"{batcher.counts.answers} answers were given"

    try:
        with stop.listening(kept):
            choir = gather(runs, trust_remote_code)
            batcher = make_batcher(choir, settings)
            batcher.start()
            try:
                _answer(door, batcher, choir, settings, ready)
            finally:
                batcher.close()
    except Interrupted as error:
        if batcher is not None:
            error.record = batcher.counts.totals()
        raise
    finally:
        door.close()


def _bind(settings: Settings) -> socket.socket:
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    door = socket.socket(family)
    door.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        door.bind((settings.host, settings.port))
    except OSError as error:
        door.close()
        raise UsageError(
            f"--host {settings.host} --port {settings.port}: {os.strerror(error.errno or 0)}; give another"
        ) from None
    return door


def make_batcher(choir: Choir, settings: Settings) -> Batcher:
    """The batch that answers as everyone.

    Raises:
        UsageError: an adapter alone is larger than the memory for all.
    """
    subject = choir.subject
    sizes = {
        size for source in choir.sources.values() for _, i, o in source.shapes.values() for size in (i, o)
    }
    dtype = subject.model.hf.get_input_embeddings().weight.dtype
    needed = {
        source.name: sum(r * (i + o) for r, i, o in source.shapes.values())
        for source in choir.sources.values()
    }
    width = min(sizes)
    # No more than all of them take, each row rounded up to whole pages.
    most = sum(
        r * (-(-i // width) + -(-o // width)) * width * dtype.itemsize
        for source in choir.sources.values()
        for r, i, o in source.shapes.values()
    )
    pages = Pages(min(settings.adapter_bytes, most), width, dtype, subject.model.device)
    for source in choir.sources.values():
        if source.pages(pages) > pages.total:
            size = needed[source.name] * dtype.itemsize
            raise UsageError(
                f"{source.name} takes {size / 2**20:,.1f} MiB, more than --adapter-memory leaves; give more"
            )
    return Batcher(subject, Store(choir.sources, pages), choir.sites, settings.limits)


def _answer(
    door: socket.socket,
    batcher: Batcher,
    choir: Choir,
    settings: Settings,
    ready: Callable[[str], None] | None,
) -> None:
    app = make_app(Desk(batcher, choir.voices, settings.offer))
    config = uvicorn.Config(
        Guards(app, settings.key, settings.most_body, BODY_SECONDS),
        log_config=None,
        access_log=False,
        server_header=False,
        lifespan="off",
        ws="none",
        http=protocol(room_for_connections()),
        backlog=AT_ONCE,
        timeout_graceful_shutdown=max(1, int(settings.drain)),
    )
    server = uvicorn.Server(config)
    answered = settings.offer.seconds + BODY_SECONDS
    thread = threading.Thread(target=_listen, args=(server, door, answered), name="http", daemon=True)
    thread.start()
    while not server.started and thread.is_alive():
        time.sleep(LOOKED)
    door.listen(KEPT)
    host, port = door.getsockname()[:2]
    address = f"http://{f'[{host}]' if ':' in host else host}:{port}/v1"
    say(f"{', '.join(choir.voices)}: at {address}; Ctrl-C ends it")
    if ready is not None:
        ready(address)
    try:
        with stop.held():  # the first signal lets answers end
            while stop.asked() is None:
                if not batcher.alive or not thread.is_alive():
                    raise LrftError(
                        "lrft serve: it ended by itself, which is a fault of lrft's; start it again"
                    )
                time.sleep(LOOKED)
    finally:
        server.should_exit = True
        thread.join(settings.drain + 5)
    stop.poll()


def _listen(server: uvicorn.Server, door: socket.socket, answered: float) -> None:
    async def until_the_end() -> None:
        asyncio.get_running_loop().set_exception_handler(told_once(say))
        watch = asyncio.create_task(end_the_late(server.server_state.connections, BODY_SECONDS, answered))
        try:
            await server.serve(sockets=[door])
        finally:
            watch.cancel()

    with ToldOnce(say).instead():
        asyncio.run(until_the_end())
