"""R11: requests of strangers to `lrft serve`, over real connections, and lines typed to `lrft chat`.

A request is a good one with something odd: values, bytes, lengths, depth, keys of the server, bodies that come slowly,
in pieces or never, connections that break. It is answered, or refused as OpenAI refuses; no answer has a traceback, a
path or the key in it, nothing is told of it on standard error but sentences, and the server answers as before.
"""

from __future__ import annotations

import asyncio
import io
import json
import os
import random
import shutil
import socket
import struct
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr, suppress
from pathlib import Path
from typing import Any

from tests.reliability.damage import _limit
from tests.reliability.full_disk import RECIPE, ROOT, call
from tests.reliability.hostile_bases import wrong
from tests.reliability.outcome import Outcome, tiny_model

KEY = "a key that nobody has"
SECONDS = 90
SLOW = 1.0  # seconds within which a body is there
BODY = 200_000
ODD = (
    *(None, True, False, -1, 0, 1, 3, 1e308, 10**400, 2**63, -(2**63), float("nan"), float("inf")),
    *("", "run", "../run", "/etc/passwd", "a" * 3000, "\x00", "\ud800", "x\n" * 2000),
    *("{% for x in range(10**9) %}a{% endfor %}", "<|im_start|>system", [], [None], [[1]], {}, {"a": 1}),
    [{"role": "user", "content": "x"}],
)
KEYS = (
    *(
        "model",
        "stream",
        "stream_options",
        "temperature",
        "top_p",
        "top_k",
        "seed",
        "stop",
        "max_tokens",
        "n",
    ),
    *(
        "presence_penalty",
        "logprobs",
        "logit_bias",
        "user",
        "metadata",
        "store",
        "messages",
        "prompt",
        "echo",
    ),
    *("max_completion_tokens", "response_format", "top_logprobs", "best_of", "suffix", "tools", "__class__"),
)
PATHS = (
    *(
        "/",
        "/metrics",
        "/v1/models/../../etc/passwd",
        "/%2e%2e/%2e%2e/etc/passwd",
        "/" + "a" * 20_000,
        "/docs",
    ),
    *("/openapi.json", "//health", "*", "/v1/models?x=" + "y" * 500),
)
LENGTHS = ("-1", "0", "1", "abc", "1e3", "9" * 30, "200001", "18446744073709551616", "+5", "0x10")
HEADS = (
    *(b"\x16\x03\x01\x02\x00", b"GET / HTTP/9.9\r\n\r\n", b"\r\n" * 100, b"A" * 100_000),
    b"GET /health HTTP/1.1\r\n" + b"x: y\r\n" * 5000 + b"\r\n",
    b"POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-length: 2\r\ncontent-length: 3\r\n\r\n{}",
)
SHOWN = (None, "", "Bearer", "Bearer x", f"bearer {KEY}", f"Bearer {KEY}" * 1000, f"Bearer {KEY[:-1]}")
GOOD = {"messages": [{"role": "user", "content": "hello"}]}, {"prompt": "hello"}


def trained(folder: Path) -> Path:
    """A folder with `run` and `exported`, which is it in PEFT's form."""
    recipe = RECIPE.format(model=tiny_model(folder), data=ROOT / "recipes" / "data" / "quickstart")
    (folder / "recipe.yaml").write_text(recipe)
    for words in (
        ("train", "recipe.yaml", "--out", "run"),
        ("export", "run", "--for", "lora", "--out", "exported"),
    ):
        ended = call(folder, words)
        assert ended.code == 0, ended
    return folder


class Served:
    """A server on a port of this machine.

    Attributes:
        said: what it told on standard error since somebody looked.
    """

    def __init__(self, port: int, batcher: Any, said: io.StringIO) -> None:
        self.port, self.batcher, self.said = port, batcher, said

    def ask(self, content: bytes, seconds: float = 30.0, end: str = "") -> bytes:
        """What is answered to bytes.

        Args:
            end: `half` says that no more comes, `reset` breaks the connection off.
        """
        answer = b""
        with socket.create_connection(("127.0.0.1", self.port), timeout=seconds) as one, suppress(OSError):
            one.sendall(content)
            if end == "reset":
                one.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                return b""
            if end == "half":
                one.shutdown(socket.SHUT_WR)
            while part := one.recv(2**16):
                answer += part
        return answer


@contextmanager
def served(folder: Path) -> Iterator[Served]:
    """`run` and `exported` of a folder, served with a key and small limits."""
    import uvicorn

    from lrft.serve.app import make_app
    from lrft.serve.connections import AT_ONCE, end_the_late, protocol, told_once
    from lrft.serve.desk import Desk, Offer
    from lrft.serve.guards import Guards
    from lrft.serve.server import Settings, make_batcher
    from lrft.serve.voices import gather

    said = io.StringIO()
    with redirect_stderr(said):
        settings = Settings(key=KEY, port=0, most_body=BODY, offer=Offer(20, 20.0))
        choir = gather([folder / "run", folder / "exported"])
        batcher = make_batcher(choir, settings)
        batcher.start()
        app = Guards(make_app(Desk(batcher, choir.voices, settings.offer)), KEY, BODY, SLOW)
        door = socket.socket()
        door.bind(("127.0.0.1", 0))
        config = uvicorn.Config(
            app,
            http=protocol(64),
            backlog=AT_ONCE,
            lifespan="off",
            ws="none",
            log_config=None,
            access_log=False,
        )
        server = uvicorn.Server(config)

        async def run() -> None:
            asyncio.get_running_loop().set_exception_handler(told_once(lambda text: said.write(f"{text}\n")))
            watch = asyncio.create_task(end_the_late(server.server_state.connections, 2 * SLOW, 30.0))
            await server.serve(sockets=[door])
            watch.cancel()

        thread = threading.Thread(target=lambda: asyncio.run(run()), daemon=True)
        thread.start()
        while not server.started:
            time.sleep(0.02)
        try:
            yield Served(door.getsockname()[1], batcher, said)
        finally:
            server.should_exit = True
            thread.join(15)
            door.close()
            batcher.close()


def request(path: str, body: bytes, method: str = "POST", **headers: str | None) -> bytes:
    """A request with the key, after which the connection closes."""
    said = {
        **{"host": "x", "authorization": f"Bearer {KEY}", "content-type": "application/json"},
        **{"content-length": str(len(body)), "connection": "close"},
        **{name.replace("_", "-"): value for name, value in headers.items()},
    }
    lines = "".join(f"{name}: {value}\r\n" for name, value in said.items() if value is not None)
    return f"{method} {path} HTTP/1.1\r\n{lines}\r\n".encode("latin-1", "replace") + body


def _written(document: object) -> bytes:
    return json.dumps(document).encode("utf-8", "surrogatepass")


def _question(draw: random.Random) -> tuple[str, dict[str, Any]]:
    inside = draw.choice(GOOD)
    path = "/v1/chat/completions" if "messages" in inside else "/v1/completions"
    own = {"model": draw.choice(("run", "exported")), "max_tokens": draw.choice((1, 3)), "temperature": 0}
    return path, json.loads(json.dumps({**own, **inside}))


def _values(server: Served, draw: random.Random) -> tuple[str, bytes]:
    path, ask = _question(draw)
    ask[draw.choice(KEYS)] = draw.choice(ODD)
    if "messages" in ask and draw.random() < 0.3:
        with suppress(TypeError, IndexError, KeyError):
            ask["messages"][0][draw.choice(("role", "content", "name", "tool_calls"))] = draw.choice(ODD)
    return str(ask)[:200], server.ask(request(path, _written(ask)))


def _bytes(server: Served, draw: random.Random) -> tuple[str, bytes]:
    path, ask = _question(draw)
    body = bytearray(_written(ask))
    for _ in range(draw.choice((1, 3, 20))):
        body[draw.randrange(len(body))] = draw.randrange(256)
    return repr(bytes(body))[:200], server.ask(request(path, bytes(body)))


def _deep(server: Served, draw: random.Random) -> tuple[str, bytes]:
    path, ask = _question(draw)
    levels, (begin, end) = draw.choice((100, 1000, 30_000)), draw.choice((("[", "]"), ('{"a":', "}")))
    key, inside = draw.choice(("metadata", "messages", "user")), f"{begin * levels}1{end * levels}"
    body = f'{json.dumps(ask)[:-1]}, "{key}": {inside}}}'.encode()
    return f"{levels} levels at {key}", server.ask(request(path, body))


def _stream(server: Served, draw: random.Random) -> tuple[str, bytes]:
    path, ask = _question(draw)
    options = draw.choice((None, {"include_usage": True}, {"include_usage": 3}, {"x": 1}, []))
    ask |= {
        "stream": True,
        "stream_options": options,
        "stop": draw.choice((None, "a", ["a"] * 17, [""], [1])),
    }
    return str(ask)[:200], server.ask(request(path, _written(ask)))


def _other(server: Served, draw: random.Random) -> tuple[str, bytes]:
    method, path = draw.choice(("GET", "PUT", "DELETE", "HEAD", "OPTIONS", "FOO")), draw.choice(PATHS)
    return f"{method} {path[:60]}", server.ask(request(path, b"", method), 8)


def _key(server: Served, draw: random.Random) -> tuple[str, bytes]:
    path, ask = _question(draw)
    shown = draw.choice(SHOWN)
    answer = server.ask(request(path, _written(ask), authorization=shown))
    return f"the key as {str(shown)[:30]!r}", b"let in: " + answer if b" 200 " in answer[:20] else answer


def _broken(server: Served, draw: random.Random) -> tuple[str, bytes]:
    """What may be left without an answer."""
    path, ask = _question(draw)
    whole = request(path, _written(ask))
    cut = whole[: draw.randrange(1, len(whole))]
    kinds: dict[str, Callable[[], bytes]] = {
        "a part": lambda: server.ask(cut, 8),
        "a part that ends": lambda: server.ask(cut, 8, "half"),
        "reset": lambda: server.ask(whole, 8, "reset"),
        "a length": lambda: server.ask(request(path, _written(ask), content_length=draw.choice(LENGTHS)), 8),
        "pieces": lambda: server.ask(
            request(path, draw.choice((b"zz\r\n{}", b"5\r\n{}", b"ffffffffffffffff\r\n{}"))).replace(
                b"content-length", b"transfer-encoding: chunked\r\nx-length"
            ),
            8,
        ),
        "a head": lambda: server.ask(draw.choice(HEADS), 8, "half"),
        "several": lambda: server.ask(whole.replace(b"connection: close\r\n", b"") * 4 + whole),
    }
    kind = draw.choice(list(kinds))
    return kind, kinds[kind]() or b"HTTP/1.1 000"


REQUESTS = (_values, _values, _values, _values, _bytes, _deep, _stream, _other, _key, _broken, _broken)


def try_request(server: Served, seed: str) -> tuple[str, str]:
    """One request; what it was, and what did not hold, or an empty string."""
    draw = random.Random(seed)
    what, answer = draw.choice(REQUESTS)(server, draw)
    said = server.said.getvalue()
    server.said.seek(0)
    server.said.truncate()
    if answer.startswith(b"let in"):
        return what, "was let in"
    if not answer.startswith(b"HTTP/1.1 ") or answer.startswith(b"HTTP/1.1 500"):
        return what, f"answered {answer[:200]!r}"
    if leak := next((one for one in (b"Traceback", KEY.encode(), str(ROOT).encode()) if one in answer), None):
        return what, f"{leak!r} is in the answer: {answer[-300:]!r}"
    if "Traceback" in said:
        return what, f"told {said[-300:]}"
    return what, "" if server.batcher.alive else "the server computes no more"


def check(n: int, seed: int) -> Outcome:
    """`n` requests to one server, and in the end a good one, which is answered as the first was."""
    outcome = Outcome()
    with tempfile.TemporaryDirectory() as name, served(trained(Path(name))) as server:
        good = request(
            "/v1/chat/completions", _written({"model": "run", "temperature": 0, "max_tokens": 3, **GOOD[0]})
        )
        first = _text(server.ask(good))
        for index in range(n):
            what, fault = try_request(server, f"{seed}-{index}")
            if index == n - 1 and not fault and _text(server.ask(good)) != first:
                fault = "a good request after it was answered otherwise than before"
            outcome.add(not fault, f"turn {index} of seed {seed}, {what}: {fault}")
    return outcome


def _text(answer: bytes) -> str:
    found = json.loads(answer.partition(b"\r\n\r\n")[2])
    return str(found["choices"][0]["message"]["content"])


# ---------------------------------------------------------------- what is typed

SET = ("temperature", "top_p", "top_k", "seed", "max_new_tokens", "x", "__class__", "")
TO = ("0", "1", "-1", "nan", "inf", "1e400", "9" * 5000, "0x10", "²", "٣", "true", "", ".5 .5", "1e-320")
FILES = (
    *("a.jsonl", "folder.jsonl", "/dev/full", "../up.jsonl", "no/such.jsonl", "link.jsonl", "pipe.jsonl"),
    *("a" * 300 + ".jsonl", "a\x00b.jsonl", ".jsonl", "a b.jsonl", "open.jsonl", "torn.jsonl", "loop.jsonl"),
    *("a.jsonl/b.jsonl", "device.jsonl", "\udcff.jsonl", "", "x.json"),
)
TEXTS = (
    *(
        "hi",
        "",
        "   ",
        "\x00",
        "a" * 20_000,
        "<|im_start|>system",
        "<|endoftext|>" * 50,
        "{{ 7 * 7 }}",
        "\x1b[2J",
    ),
    *(
        "\u202e",
        "\udcff",
        "/adapter on",
        "/adapter off",
        "/adapter",
        "/reset",
        "/help",
        "/nope",
        "/",
        "//x",
        "/set",
    ),
)


def typed_lines(draw: random.Random) -> list[str]:
    """What somebody types after a first question."""
    kinds = (
        lambda: f"/set {draw.choice(SET)} {draw.choice(TO)}",
        lambda: f"/save {draw.choice(FILES)}",
        lambda: draw.choice(TEXTS),
    )
    return [draw.choice(kinds)() for _ in range(draw.choice((1, 3, 6)))]


def try_talk(run: Path, seed: str, place: Path) -> tuple[list[str], str]:
    """A conversation in a folder of odd files; what was typed, and what did not hold, or an empty string."""
    draw = random.Random(seed)
    inside = place / "inside"
    inside.mkdir(parents=True)
    (inside / "folder.jsonl").mkdir()
    (place / "outside").write_text("kept")
    for name, target in (("link", place / "outside"), ("device", "/dev/zero"), ("loop", "loop.jsonl")):
        (inside / f"{name}.jsonl").symlink_to(target)
    os.mkfifo(inside / "pipe.jsonl")
    (inside / "open.jsonl").write_text('{"messages": []}')
    (inside / "torn.jsonl").write_text('{"mess')
    lines = typed_lines(draw)
    more = draw.choice(((), ("--json",), ("-q",), ("--temperature", "1", "--seed", "3"), ("--base",)))
    typed = "\n".join(["hello", *lines, ""])
    try:
        with _limit(SECONDS):
            ended = call(inside, ("chat", str(run), "--max-new-tokens", "2", *more), typed)
    except TimeoutError as error:
        return lines, str(error)
    if (place / "outside").read_text() != "kept":
        return lines, "wrote through a link"
    for name in ("a.jsonl", "a b.jsonl", "open.jsonl"):
        written = (inside / name).read_text().splitlines() if (inside / name).exists() else []
        with suppress(ValueError):
            list(map(json.loads, written))
            continue
        return lines, f"{name} has a line that is no JSON"
    as_json = "--json" in more
    return lines, ("" if as_json and ended.code and not ended.raised else wrong(ended, inside))


def talk(n: int, seed: int) -> Outcome:
    """`n` conversations with one run."""
    outcome = Outcome()
    with tempfile.TemporaryDirectory() as name:
        run, place = trained(Path(name)) / "run", Path(name) / "place"
        for index in range(n):
            lines, fault = try_talk(run, f"{seed}-{index}", place)
            outcome.add(not fault, f"turn {index} of seed {seed}, {str(lines)[:200]}: {fault}")
            shutil.rmtree(place)
    return outcome
