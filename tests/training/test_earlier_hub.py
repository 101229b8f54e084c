"""A training that begins with an adapter of the hub, here a server on this machine."""

from __future__ import annotations

import hashlib
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
import torch
from safetensors.torch import load_file

from lrft.api.training.train import train
from lrft.build.adapt import adapt
from lrft.core.adapted import adapted
from lrft.recipe.load import load_recipe
from lrft.registry.errors import RecipeError

COMMIT = "1" * 40
PLAIN = [
    "quantization=none",
    "model.dtype=float32",
    "train.max_steps=1",
    "~train.eval_every",
    "optimizer.lr=0.02",
]


class Hub(BaseHTTPRequestHandler):
    """As much of the hub as a download asks of it."""

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        path = self.path.partition("?")[0]
        self.server.seen.append((self.command, path))
        repositories, refuses = self.server.repositories, self.server.refuses
        if refuses:
            return self.answer(b'{"error": "busy"}', 503)
        for name, files in repositories.items():
            if path.startswith(f"/api/models/{name}/tree/"):
                tree = [
                    {"type": "file", "path": file, "size": len(content), "oid": "0" * 40}
                    for file, content in files.items()
                ]
                return self.answer(json.dumps(tree).encode())
            if path.startswith(f"/api/models/{name}"):
                revision = path.partition("/revision/")[2] or "main"
                if revision not in ("main", COMMIT):
                    return self.answer(b"{}", 404, {"X-Error-Code": "RevisionNotFound"})
                siblings = [{"rfilename": file} for file in files]
                return self.answer(json.dumps({"id": name, "sha": COMMIT, "siblings": siblings}).encode())
            for file, content in files.items():
                if path == f"/{name}/resolve/{COMMIT}/{file}":
                    tag = f'"{hashlib.sha256(content).hexdigest()}"'
                    return self.answer(content, headers={"ETag": tag, "X-Repo-Commit": COMMIT})
        return self.answer(b"{}", 404, {"X-Error-Code": "RepoNotFound"})

    def answer(self, content: bytes, status: int = 200, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(content)), **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(content)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture(scope="module")
def recipe(tiny_recipe, tmp_path_factory):
    """`recipe(*overrides)` -> the loaded recipe of the tiny model in float32."""
    path = tiny_recipe(tmp_path_factory.mktemp("recipe"))
    return lambda *overrides: load_recipe(path, [*PLAIN, *overrides])


@pytest.fixture(scope="module")
def folder(recipe, tmp_path_factory):
    """The adapter of a finished run."""
    out = tmp_path_factory.mktemp("runs") / "first"
    train(recipe(), out)
    return out / "adapter"


@pytest.fixture(scope="module")
def server(folder):
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    files = {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}
    config = {"adapter_config.json": files["adapter_config.json"]}
    server.repositories = {
        "me/mine": {**files, "modeling.py": b"raise SystemExit", "adapter_model.bin": b"pickled"},
        "me/pickled": {**config, "adapter_model.bin": b"pickled"},
        "me/model": {"config.json": b"{}"},
    }
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield server
    server.shutdown()
    thread.join()


@pytest.fixture
def hub(server, monkeypatch, tmp_path):
    from huggingface_hub import constants

    server.seen, server.refuses = [], False
    monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{server.server_port}")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    return server


@pytest.mark.parametrize("asked", ["me/mine", f"me/mine@{COMMIT}"])
def test_it_begins_as_the_folder_does_and_takes_only_the_adapters_own_files(
    recipe, folder, hub, tmp_path, asked
):
    begun = adapt(recipe(f"model.adapter={asked}").recipe)
    there = load_file(folder / "adapter_model.safetensors")
    name, site = next(iter(adapted(begun.model.hf)))
    assert torch.equal(site.adapter.B, there[f"base_model.model.{name}.lora_B.weight"])
    got = {path.rpartition("/")[2] for method, path in hub.seen if method == "GET" and "/resolve/" in path}
    assert got == {"adapter_config.json", "adapter_model.safetensors"}
    assert (begun.origin["repository"], begun.origin["revision"]) == ("me/mine", COMMIT)
    assert (
        begun.origin["sha256"]
        == hashlib.sha256((folder / "adapter_model.safetensors").read_bytes()).hexdigest()
    )
    assert f"lora of {asked} goes on as it is" in begun.notes[0]


def test_what_is_here_already_is_used_without_network(recipe, hub, monkeypatch):
    from huggingface_hub import constants

    adapt(recipe("model.adapter=me/mine").recipe)
    hub.seen.clear()
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert adapt(recipe("model.adapter=me/mine").recipe).origin["revision"] == COMMIT
    assert hub.seen == []


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        (
            "me/pickled",
            "me/pickled on the hub has no adapter_model.safetensors; save the adapter with safetensors",
        ),
        ("me/model", "me/model on the hub has no adapter_config.json; name the repository of an adapter"),
        ("me/nothing", "there is no folder me/nothing here and no me/nothing on the hub"),
        ("me/mine@old", "me/mine has no revision old; give one that it has"),
    ],
)
def test_what_is_no_adapter_there_is_refused(recipe, hub, asked, message):
    with pytest.raises(RecipeError, match=message):
        adapt(recipe(f"model.adapter={asked}").recipe)


def test_a_hub_that_does_not_answer_is_told_in_one_sentence(recipe, hub):
    hub.refuses = True
    with pytest.raises(RecipeError, match=r"the hub was not reached|the hub did not give me/mine"):
        adapt(recipe("model.adapter=me/mine").recipe)


def test_a_hub_that_is_not_reached_is_told_in_one_sentence(recipe, hub, monkeypatch):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(
        RecipeError, match=r"me/mine is not here, and the hub was not reached; .*name a folder"
    ):
        adapt(recipe("model.adapter=me/mine").recipe)


@pytest.mark.parametrize("asked", ["./me/mine", "nothing", "me/mine/more", "me/mi ne"])
def test_what_is_neither_a_folder_nor_a_name_is_refused_with_the_recipe(recipe, asked):
    with pytest.raises(RecipeError, match=r"model\.adapter: .*no hub id \(owner/name\)"):
        recipe(f"model.adapter={asked}")
