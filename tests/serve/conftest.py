"""Runs of the tiny model, served."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from lrft.api.exporting.export import export
from lrft.api.training.train import train
from lrft.recipe.load import load_recipe
from tests.commands.conftest import DATA, RECIPE

pytest.importorskip("fastapi", reason="the extra `serve` is not installed")
pytest.importorskip("uvicorn", reason="the extra `serve` is not installed")

RUNS = {
    "small": ["adapter.rank=2", "adapter.targets=[q_proj, v_proj]"],
    "pissa": ["adapter.rank=4", "init.method=pissa"],
    "ones": ["adapter.rank=1", "train.seed=3"],
    "plain": ["adapter.rank=2", "data.format={method: prompt_completion, render: plain}"],
    "bits": ["quantization=nf4", "adapter.rank=2"],
    "more_bits": ["quantization=nf4", "adapter.rank=3", "adapter.alpha=9"],
    "other_bits": ["quantization=nf4", "adapter.targets=[q_proj]"],
    "dora": ["adapter.method=dora"],
    "norms": ["adapter.rank=2", 'trainable=["*norm.weight"]'],
}


@pytest.fixture(scope="session")
def runs(tiny, tmp_path_factory) -> Path:
    """Folders of runs, and `exported`, which is `small` in PEFT's form."""
    folder = tmp_path_factory.mktemp("served")
    path = folder / "tiny.yaml"
    path.write_text(RECIPE.format(model=tiny(), data=DATA))
    for name, more in RUNS.items():
        train(
            load_recipe(path, ["optimizer.lr=0.3", "quantization=none", *more]), folder / name, resume=False
        )
    export(folder / "small", "lora", folder / "exported")
    return folder


@pytest.fixture
def served(runs):
    """`with served(*names, settings) as ask`: an application on these runs; `ask(method, path, ...)` is a request."""
    import httpx

    from lrft.serve.app import make_app
    from lrft.serve.desk import Desk
    from lrft.serve.guards import Guards
    from lrft.serve.server import Settings, make_batcher
    from lrft.serve.voices import gather

    @contextmanager
    def open_it(*names: str, settings: Settings | None = None) -> Iterator[Client]:
        settings = settings or Settings()
        choir = gather([runs / name for name in names])
        batcher = make_batcher(choir, settings)
        app = make_app(Desk(batcher, choir.voices, settings.offer))
        batcher.start()
        try:
            yield Client(
                httpx.ASGITransport(Guards(app, settings.key, settings.most_body, 0.2)), batcher, choir
            )
        finally:
            batcher.close()

    return open_it


class Client:
    """Requests to an application, many at once or one."""

    def __init__(self, transport, batcher, choir) -> None:
        self.transport, self.batcher, self.choir = transport, batcher, choir
        self.base = next(iter(choir.voices))

    def many(self, asks, headers=None):
        """Answers to (path, document) at once, in order."""
        import httpx

        async def all_of() -> list[httpx.Response]:
            limits = httpx.Limits(max_connections=None)
            async with httpx.AsyncClient(
                transport=self.transport, base_url="http://tiny", limits=limits, timeout=120, headers=headers
            ) as client:
                return await asyncio.gather(*(_one(client, path, content) for path, content in asks))

        return asyncio.run(all_of())

    def post(self, path: str, content: object, headers=None):
        return self.many([(path, content)], headers)[0]

    def get(self, path: str, headers=None):
        return self.many([(path, None)], headers)[0]

    def chat(self, model: str, text: str, **more):
        """The answer's text, greedy."""
        ask = {"model": model, "messages": [{"role": "user", "content": text}], "temperature": 0, **more}
        done = self.post("/v1/chat/completions", ask)
        assert done.status_code == 200, done.text
        return done.json()["choices"][0]["message"]["content"]


def _one(client, path, content):
    if content is None:
        return client.get(path)
    body = content if isinstance(content, bytes) else json.dumps(content)
    return client.post(path, content=body, headers={"content-type": "application/json"})
