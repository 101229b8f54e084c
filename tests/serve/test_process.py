"""The command as a process: the port, OpenAI's own client, clients that break off, and the signal that ends it."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time

import pytest


@pytest.fixture
def server(runs):
    """`server(*names, options)`: the process and its address."""
    started: list[subprocess.Popen[str]] = []

    def start(*names: str, options: tuple[str, ...] = ()) -> tuple[subprocess.Popen[str], str]:
        command = [
            sys.executable,
            "-m",
            "lrft",
            "serve",
            *(str(runs / name) for name in names),
            "--port",
            "0",
        ]
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        process = subprocess.Popen([*command, *options], stderr=subprocess.PIPE, text=True, env=environment)
        started.append(process)
        assert process.stderr is not None
        for line in process.stderr:
            if ": at http://" in line:
                return process, line.split(": at ")[1].split(";")[0]
        raise AssertionError(f"it ended with {process.wait()}")

    yield start
    for process in started:
        process.kill()
        process.wait()


@pytest.mark.slow
def test_openais_client_is_answered_and_a_signal_lets_answers_end(server):
    openai = pytest.importorskip("openai", reason="OpenAI's client is not installed")
    process, address = server("small", "pissa", options=("--max-tokens", "400"))
    client = openai.OpenAI(base_url=address, api_key="none", max_retries=0)
    assert [one.id for one in client.models.list()][1:] == ["small", "pissa"]
    turns = [{"role": "user", "content": "2 + 2 ="}]
    whole = client.chat.completions.create(model="pissa", messages=turns, temperature=0, max_tokens=8)
    stream = client.chat.completions.create(
        model="pissa", messages=turns, temperature=0, max_tokens=8, stream=True
    )
    assert "".join(one.choices[0].delta.content or "" for one in stream) == whole.choices[0].message.content
    text = client.completions.create(model="small", prompt="Once", temperature=0, max_tokens=4)
    assert text.choices[0].text
    assert client.models.retrieve("pissa").id == "pissa"
    for large in (1_200_000, 5_000_000, 30_000_000):
        with pytest.raises(openai.APIStatusError, match="a request may have 1,048,576 bytes"):
            client.completions.create(model="small", prompt="x" * large)
    with pytest.raises(openai.NotFoundError, match="there is no model"):
        client.chat.completions.create(model="none", messages=turns)
    with pytest.raises(openai.BadRequestError, match="tools"):
        client.chat.completions.create(
            model="small", messages=turns, tools=[{"type": "function", "function": {"name": "f"}}]
        )
    found = []
    asking = threading.Thread(
        target=lambda: found.append(
            client.chat.completions.create(model="small", messages=turns, temperature=0, max_tokens=400)
        )
    )
    asking.start()
    time.sleep(0.3)
    process.send_signal(signal.SIGTERM)
    asking.join()
    assert found[0].usage.completion_tokens > 0
    assert process.wait(60) == 143
    assert "answers were given" in process.stderr.read()


@pytest.mark.slow
def test_two_hundred_clients_at_once_are_answered_as_one_at_a_time(server):
    import asyncio

    import httpx

    process, address = server("small", "pissa", "ones", "plain", options=("--rows", "24"))
    names = ["small", "pissa", "ones", "plain"]
    texts = [f"{k} + {3 * k} =" for k in range(50)]
    asks = [
        {
            "model": name,
            "messages": [{"role": "user", "content": text}],
            "temperature": 0,
            "max_tokens": 5 + k % 7,
        }
        for k, text in enumerate(texts)
        for name in names
    ]

    async def ask_all(most: int) -> list[str]:
        limits = httpx.Limits(max_connections=most)
        async with httpx.AsyncClient(base_url=address, limits=limits, timeout=300) as client:
            done = await asyncio.gather(*(client.post("/chat/completions", json=ask) for ask in asks))
        return [one.json()["choices"][0]["message"]["content"] for one in done]

    together = asyncio.run(ask_all(200))
    alone = asyncio.run(ask_all(1))
    assert together == alone and len(set(together)) > 20
    process.send_signal(signal.SIGINT)
    assert process.wait(60) == 130


@pytest.mark.slow
def test_openais_client_under_load_has_its_answers_whatever_others_send(server, monkeypatch):
    """Two hundred answers at once, streamed and whole, greedy and drawn, while others show wrong keys, send too much
    and break off; beside the same asked one at a time, with room for two adapters of three.
    """
    openai = pytest.importorskip("openai", reason="OpenAI's client is not installed")
    import asyncio
    import random

    import httpx

    key = "a key of many letters"
    monkeypatch.setenv("LRFT_SERVE_KEY", key)
    options = ("--rows", "24", "--adapter-memory", "24KiB")
    process, address = server("small", "ones", "plain", options=options)
    asks = [
        {
            "model": ("small", "ones", "plain")[k % 3],
            "messages": [{"role": "user", "content": f"{k} + {7 * k % 31} ="}],
            "max_tokens": 1 + k % 9,
            "stream": k % 4 == 1,
            **({"temperature": 0} if k % 2 else {"temperature": 1.3, "seed": k, "top_p": 0.8}),
        }
        for k in range(200)
    ]

    async def one(client, ask) -> str:
        answer = await client.chat.completions.create(**ask)
        if not ask["stream"]:
            return answer.choices[0].message.content
        return "".join([piece.choices[0].delta.content or "" async for piece in answer])

    async def strange(client, stranger, k) -> int:
        await asyncio.sleep(random.random())
        turns = [{"role": "user", "content": "x" * (3_000_000 if k % 3 == 1 else 1)}]
        try:
            found = await (client if k % 3 else stranger).chat.completions.create(
                model="small", messages=turns, max_tokens=60, stream=True
            )
        except openai.APIStatusError as error:
            return error.status_code
        async for _ in found:
            break
        await found.close()
        return 200

    async def ask_all(most: int, strangers: int) -> tuple[list[str], list[int]]:
        own = httpx.AsyncClient(limits=httpx.Limits(max_connections=None), timeout=300)
        client = openai.AsyncOpenAI(base_url=address, api_key=key, max_retries=0, http_client=own)
        stranger = openai.AsyncOpenAI(base_url=address, api_key=key[:-1], max_retries=0)
        room = asyncio.Semaphore(most)

        async def in_room(ask) -> str:
            async with room:
                return await one(client, ask)

        noise = asyncio.gather(*(strange(client, stranger, k) for k in range(strangers)))
        return await asyncio.gather(*map(in_room, asks)), await noise

    together, strange_answers = asyncio.run(ask_all(200, 30))
    alone, _ = asyncio.run(ask_all(1, 0))
    assert together == alone and len(set(together)) > 50
    assert [strange_answers.count(status) for status in (401, 413, 200)] == [10, 10, 10]
    root, shown = address.removesuffix("/v1"), {"authorization": f"Bearer {key}"}
    text = httpx.get(f"{root}/metrics", headers=shown).text
    assert "lrft_rows 0\n" in text and "lrft_waiting 0\n" in text
    assert "lrft_adapter_evictions_total 0" not in text  # they had to make room for one another
    process.send_signal(signal.SIGTERM)
    assert process.wait(60) == 143
    said = process.stderr.read()
    assert "Traceback" not in said and key not in said


@pytest.mark.slow
def test_connections_that_break_leave_nothing_behind(server):
    import httpx

    process, address = server("small", options=("--max-tokens", "400"))
    host, port = address.removeprefix("http://").removesuffix("/v1").split(":")
    body = json.dumps(
        {"model": "small", "messages": [{"role": "user", "content": "Go"}], "max_tokens": 400, "stream": True}
    ).encode()
    head = b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
    for cut in (10, len(head), len(head) + 40, None):
        with socket.create_connection((host, int(port))) as line:
            whole = head + f"Content-Length: {len(body)}\r\n\r\n".encode() + body
            line.sendall(whole[:cut])
            if cut is None:
                line.recv(100)  # the stream has begun, and nobody reads on
    ended = time.monotonic() + 30
    while time.monotonic() < ended:
        text = httpx.get(address.removesuffix("/v1") + "/metrics").text
        if "lrft_rows 0\n" in text and "lrft_waiting 0\n" in text:
            break
        time.sleep(0.1)
    else:
        raise AssertionError(text)
    assert "lrft_faults_total 1\n" in text
    process.send_signal(signal.SIGTERM)
    assert process.wait(60) == 143
    assert "Traceback" not in process.stderr.read()
