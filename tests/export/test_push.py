"""`lrft export --push`: the folder and a filled card reach the hub, here a server on this machine."""

from __future__ import annotations

import base64
import json
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest
import yaml

from lrft.api.exporting.export import export
from lrft.registry.errors import LrftError, UsageError
from tests.export.exported_runs import trained


class Hub(BaseHTTPRequestHandler):
    """As much of the hub as an upload asks of it."""

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"] or 0))
        self.server.seen.append((self.path, self.headers.get("Authorization"), body))
        if self.server.refuses:
            return self.answer({"error": "no such token"}, 401)
        if self.path.endswith("/preupload/main"):
            paths = [one["path"] for one in json.loads(body)["files"]]
            files = [{"path": path, "uploadMode": "regular", "shouldIgnore": False} for path in paths]
            return self.answer({"files": files})
        if self.path.endswith("/commit/main"):
            return self.answer(
                {"commitOid": "1" * 40, "commitUrl": f"{self.server.url}/me/mine/commit/1", "success": True}
            )
        return self.answer({"url": f"{self.server.url}/me/mine", "warnings": [], "errors": []})

    def do_GET(self) -> None:
        self.server.seen.append((self.path, self.headers.get("Authorization"), b""))
        if self.server.refuses:
            return self.answer({"error": "no such token"}, 401)
        return self.answer({"id": "me/mine", "sha": "0" * 40, "siblings": []})

    def answer(self, content: dict, status: int = 200) -> None:
        text = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture(scope="module")
def server():
    """One for all tests: huggingface_hub remembers which hosts are hubs."""
    server = HTTPServer(("127.0.0.1", 0), Hub)
    server.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield server
    server.shutdown()
    thread.join()


@pytest.fixture
def hub(server, monkeypatch):
    from huggingface_hub import constants

    server.seen, server.refuses = [], False
    monkeypatch.setenv("HF_ENDPOINT", server.url)
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    return server


@pytest.fixture(scope="module")
def run(tiny, tmp_path_factory):
    return trained(tmp_path_factory.mktemp("runs"), tiny("llama"), "adapter: {method: lora, rank: 4}")


def uploaded(hub) -> dict[str, bytes]:
    (body,) = [body for path, _, body in hub.seen if path.endswith("/commit/main")]
    values = [line["value"] for line in map(json.loads, body.splitlines()) if line["key"] == "file"]
    return {value["path"]: base64.b64decode(value["content"]) for value in values}


def test_the_folder_goes_up_in_one_commit_with_a_filled_card(run, hub, tmp_path):
    record = export(run, "vllm", tmp_path / "out", push_to="me/mine")
    assert record["pushed"] == f"{hub.url}/me/mine/commit/1"
    found = uploaded(hub)
    assert found == {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()}
    _, front, body = found["README.md"].decode().split("---\n", 2)
    assert yaml.safe_load(front)["library_name"] == "peft" and "vllm" in yaml.safe_load(front)["tags"]
    assert "for 3 steps and written for vllm" in body and "[More" not in body and str(tmp_path) not in body
    made = next(json.loads(body) for path, _, body in hub.seen if path == "/api/repos/create")
    assert made["visibility"] == "private" and (made["organization"], made["name"]) == ("me", "mine")
    assert all(token == "Bearer hf_secret" for _, token, _ in hub.seen)


def test_a_hub_that_refuses_is_one_sentence_and_the_folder_stays(run, hub, tmp_path):
    hub.refuses = True
    with pytest.raises(
        LrftError, match=r"^--push me/mine: the hub refused \(.*401.*`hf auth login`"
    ) as refused:
        export(run, "vllm", tmp_path / "out", push_to="me/mine")
    assert "hf_secret" not in str(refused.value) and (tmp_path / "out" / "fidelity.json").is_file()


def test_a_name_that_is_none_is_refused_before_anything_is_written(run, tmp_path):
    with pytest.raises(UsageError, match="write OWNER/NAME"):
        export(run, "vllm", tmp_path / "out", push_to="mine")
    assert not (tmp_path / "out").exists()
