"""What the server will not do, in one sentence, before it listens or as OpenAI's error."""

from __future__ import annotations

import json
import shutil
import time
from dataclasses import replace

import pytest
from safetensors.torch import load_file, save_file

from lrft.registry.errors import LrftError, UsageError
from lrft.serve.server import Settings, is_loopback
from lrft.serve.voices import gather
from lrft.serve.waiting import Limits, QueueFull

KEY = "a key of many letters"


def test_what_cannot_be_served_is_refused_before_anything_listens(runs):
    cases = {
        "is an adapter without a base": ["exported", "small"],
        "has no exact factors of low rank": ["dora"],
        "norm.weight trained; use `lrft merge`": ["norms"],
        "was trained on a base stored otherwise than that of bits, at quantization": ["bits", "other_bits"],
        "stored otherwise than that of small, at model.layers.0.self_attn.q_proj": ["small", "bits"],
        "small is the name of two": ["small", "small"],
    }
    for said, names in cases.items():
        with pytest.raises(LrftError) as refused:
            gather([runs / name for name in names])
        assert said in str(refused.value) and "\n" not in str(refused.value)


def test_a_model_that_keeps_a_state_is_refused(runs, monkeypatch):
    monkeypatch.setattr("lrft.serve.voices.joins", lambda model: False)
    with pytest.raises(
        UsageError, match=r"LlamaForCausalLM keeps more of a row than keys and values .* lrft generate"
    ):
        gather([runs / "small"])


def test_a_folder_that_fits_no_layer_is_refused(runs, tmp_path):
    shutil.copytree(runs / "exported", tmp_path / "odd")
    config = json.loads((tmp_path / "odd" / "adapter_config.json").read_text())
    (tmp_path / "odd" / "adapter_config.json").write_text(json.dumps(config))
    with pytest.raises(LrftError, match=r"odd: adapter_config.json is damaged .* or remove fidelity.json"):
        gather([runs / "small", tmp_path / "odd"])
    (tmp_path / "odd" / "fidelity.json").unlink()
    for change, said in {"pissa": "took a part off", "what": "took a part off"}.items():
        (tmp_path / "odd" / "adapter_config.json").write_text(
            json.dumps({**config, "init_lora_weights": change})
        )
        with pytest.raises(LrftError, match=said):
            gather([runs / "small", tmp_path / "odd"])
    (tmp_path / "odd" / "adapter_config.json").write_text(json.dumps(config))
    tensors = load_file(tmp_path / "odd" / "adapter_model.safetensors")
    renamed = {name.replace("layers.0", "layers.7"): tensor for name, tensor in tensors.items()}
    save_file(renamed, tmp_path / "odd" / "adapter_model.safetensors")
    with pytest.raises(LrftError, match=r"which the base does not have|is damaged|sum"):
        gather([runs / "small", tmp_path / "odd"])


def test_runs_on_one_base_in_few_bits_are_served_together(served):
    with served("bits", "more_bits") as client:
        assert client.chat("bits", "Why?", max_tokens=3) != client.chat("more_bits", "Why?", max_tokens=3)


def test_others_than_this_machine_need_a_key():
    assert is_loopback("127.0.0.1") and is_loopback("::1") and is_loopback("localhost")
    cases = {
        "a key is needed": Settings(host="0.0.0.0"),
        "at least 16": Settings(key="short"),
        "ports are": Settings(port=70000),
        "--rows 0": Settings(limits=Limits(rows=0)),
        "--drain 0": Settings(drain=0),
    }
    for said, settings in cases.items():
        with pytest.raises(UsageError, match=said):
            settings.check()
    Settings(host="0.0.0.0", key=KEY).check()


def test_requests_that_are_wrong_get_openais_error(served):
    turns = [{"role": "user", "content": "Why?"}]
    good = {"model": "small", "messages": turns, "max_tokens": 2}
    cases = [
        (404, "there is no model 'other'", {**good, "model": "other"}),
        (400, "temprature: Extra inputs are not permitted", {**good, "temprature": 1}),
        (400, "tools: Extra inputs are not permitted", {**good, "tools": []}),
        (400, "n: Input should be 1", {**good, "n": 2}),
        (400, "messages: List should have at least 1 item", {**good, "messages": []}),
        (400, "temperature", {**good, "temperature": -1}),
        (400, "stop: give at most 16 texts", {**good, "stop": [""]}),
        (400, "this server gives at most 1024", {**good, "max_tokens": 5000}),
        (
            400,
            "tokens and 2 are asked for, of",
            {**good, "messages": [{"role": "user", "content": "a " * 9000}]},
        ),
        (400, "JSON", b"{"),
        (400, "", b"[" * 100_000),
        (400, "", b"\xff\xfe"),
        (400, "", b'{"model": "small", "messages": [{"role": "user", "content": NaN}]}'),
    ]
    with served("small") as client:
        for (status, said, _), done in zip(
            cases, client.many([("/v1/chat/completions", ask) for *_, ask in cases]), strict=True
        ):
            assert done.status_code == status, (said, done.text)
            assert said in done.json()["error"]["message"], done.text
            assert "Traceback" not in done.text
        beyond = client.post("/v1/completions", {"model": "small", "prompt": [10**6]})
        assert beyond.status_code == 400 and "is none" in beyond.json()["error"]["message"]
        several = client.post("/v1/completions", {"model": "small", "prompt": ["a", "b"]})
        assert several.status_code == 400 and "one prompt a request" in several.json()["error"]["message"]
        assert client.get("/v1/nothing").status_code == 404
        assert client.get("/v1/models/small").json()["id"] == "small"
        unknown = client.get("/v1/models/..%2fsmall")
        assert unknown.status_code == 404 and unknown.json()["error"]["code"] == "model_not_found"
        assert [one["id"] for one in client.get("/v1/models").json()["data"]] == [client.base, "small"]
        assert client.chat("small", "Why?", max_tokens=2)  # and it answers as before


def test_a_key_a_size_and_a_time_are_kept(served):
    settings = Settings(key=KEY, most_body=2000)
    ask = {"model": "small", "messages": [{"role": "user", "content": "Why?"}], "max_tokens": 1}
    right = {"authorization": f"Bearer {KEY}"}
    with served("small", settings=settings) as client:
        for headers in [None, {"authorization": f"Bearer {KEY}x"}, {"authorization": KEY}]:
            done = client.post("/v1/chat/completions", ask, headers)
            assert done.status_code == 401 and done.json()["error"]["type"] == "authentication_error"
            assert KEY not in done.text
            assert client.get("/metrics", headers).status_code == 401
        assert client.get("/health").status_code == 200
        assert client.post("/v1/chat/completions", ask, right).status_code == 200
        assert client.post("/v1/chat/completions", b" " * 2001, right).status_code == 413
        while client.batcher.running:  # it is told before its row goes
            time.sleep(0.01)
        text = client.get("/metrics", right).text
        assert "lrft_answers_total 1\n" in text and "lrft_rows 0\n" in text


def test_a_body_that_does_not_end_is_not_waited_for(served):
    import asyncio

    sent = []

    async def ask(app) -> None:
        async def never() -> dict:
            await asyncio.sleep(60)
            raise AssertionError

        async def send(message) -> None:
            sent.append(message)

        scope = {"type": "http", "path": "/v1/chat/completions", "headers": [(b"content-length", b"10")]}
        await app(scope, never, send)

    with served("small") as client:
        asyncio.run(ask(client.transport.app))
    assert sent[0]["status"] == 408


def test_more_than_may_wait_are_refused_and_time_runs_out(served):
    from lrft.serve.desk import Offer

    ask = {
        "model": "small",
        "messages": [{"role": "user", "content": "Why?"}],
        "max_tokens": 60,
        "temperature": 0,
    }
    few = Settings(limits=Limits(rows=1, waiting=2))
    with served("small", settings=few) as client:
        codes = [one.status_code for one in client.many([("/v1/chat/completions", ask)] * 8)]
    assert set(codes) == {200, 429} and codes.count(200) >= 2
    slow = replace(Settings(), offer=Offer(seconds=0.001))
    with served("small", settings=slow) as client:
        done = client.post("/v1/chat/completions", ask)
        assert done.status_code == 504 and "--timeout" in done.json()["error"]["message"]
        while client.batcher.running:  # it is told before its row goes
            time.sleep(0.01)


def test_a_closed_queue_takes_nothing(served):
    with served("small") as client:
        queue = client.batcher.queue
    with pytest.raises(QueueFull):
        queue.put(None)  # type: ignore[arg-type]


def test_an_adapter_of_numbers_that_are_none_is_refused_before_rows_of_others_meet_it(runs, tmp_path):
    shutil.copytree(runs / "exported", tmp_path / "odd")
    for name in ("fidelity.json", "manifest.json"):
        (tmp_path / "odd" / name).unlink(missing_ok=True)
    file = tmp_path / "odd" / "adapter_model.safetensors"
    tensors = load_file(file)
    first = next(iter(tensors))
    tensors[first].view(-1)[0] = float("inf")
    save_file(tensors, file)
    with pytest.raises(UsageError, match=r"odd: holds numbers of model\.layers.* that are not finite"):
        gather([runs / "small", tmp_path / "odd"])
