"""A base that is cut into parts over processes trains as a whole one, and its checkpoints know nothing of it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from lrft.api.training import run_record
from lrft.api.training.train import train
from lrft.build.adapt import adapt
from lrft.model.trained import frozen_layers
from lrft.recipe.load import load_recipe
from lrft.recipe.schema import Recipe
from lrft.registry.errors import RecipeError
from tests.launched import launched
from tests.training.unbroken import cut_off

STORAGES = ("nf4", "none")
# Of five rows, four a step, every second step leaves one process without a row, and the last batch of scores too.
SHORT = [
    "data.train.limit=5",
    "train.packing=false",
    "train.max_steps=8",
    "eval.batch_tokens=300",
    "train.keep_last=9",
]
LORAPRUNE = "prune={method: loraprune, ratio: 0.5, every: 2, whole_first: 0.0, whole_last: 0}"
UNPAIRED = Path(__file__).parents[2] / "recipes" / "data" / "unpaired"
FULL = ["trainable=full", "adapter=null", "quantization=none"]
KINDS = {
    "none": ["quantization=none"],
    "nf4": ["quantization=nf4"],
    "dora": ["quantization=nf4_reference", "adapter={method: dora, rank: 4, dropout: 0.1}"],
    "checkpointed": ["quantization=int8", "model.activation_checkpointing=true"],
    "anchored": ["quantization=nf4", "init=pissa", "adapter.dropout=0"],
    "restarts": ["restart={method: periodic, every: 3, share: 0.5}", "quantization=nf4"],
    "experts": ["adapter={method: mixlora, rank: 2, experts: 3}"],
    "loraprune": ["quantization=nf4", LORAPRUNE],
    "loram": ["quantization=nf4", "prune={method: loram, ratio: 0.5, whole_first: 0, whole_last: 0}"],
    "whole base": ["quantization=nf4"],
    "whole base, loraprune": ["quantization=nf4", LORAPRUNE],
    "whole base, trp": [*FULL, "prune={method: trp, every: 3, nuclear: 0.001}"],
    "whole base, airllm": [
        "adapter={method: svd_lora, rank: 4}",
        "allocate={method: airllm, episode: 3, warmup: 3, denoising: 5, bandwidth: [5e5]}",
    ],
    # The last micro-batch of seven rows is one row, which has no other to compare with.
    "kto": [
        "quantization=none",
        "objective=kto",
        "~data.train",
        f"data.train={{source: {UNPAIRED}/train.jsonl, limit: 7}}",
        f"data.eval={UNPAIRED}/test.jsonl",
        "data.eval.limit=5",
        "data.format={method: unpaired, render: chat}",
    ],
    "zeroth order": ["optimizer={method: mezo, lr: 1e-4}", "train.clip=null"],
}
# Every storage is cut in tests/contracts/test_sharded.py; here two kinds, one without gradients, stand for the others.
ALWAYS = ("nf4", "zeroth order", "whole base")
UNCUT = "whole base"  # what begins so: every process keeps all of it, and the same batches are shared
CASES = [kind if kind in ALWAYS else pytest.param(kind, marks=pytest.mark.slow) for kind in KINDS]
CUT = [case for kind, case in zip(KINDS, CASES, strict=True) if not kind.startswith(UNCUT)]
SCRIPT = Path(__file__).with_name("shards_on_two_processes.py")


def asked_for(request: pytest.FixtureRequest, parameter: str) -> list[str]:
    """The values of a parameter among the tests that are going to run."""
    here = [item for item in request.session.items if item.path == request.path and hasattr(item, "callspec")]
    found = [item.callspec.params[parameter] for item in here if parameter in item.callspec.params]
    return list(dict.fromkeys(["nf4", *found]))


def settings(kind: str, processes: int) -> list[str]:
    shard = f"train.shard_base={str(not kind.startswith(UNCUT)).lower()}"
    return [*SHORT, *KINDS[kind], shard, f"train.gradient_accumulation={2 // processes}"]


@pytest.fixture(scope="module")
def runs(request, tiny_recipe, tmp_path_factory) -> Path:
    """`one/KIND` by one process and `two/KIND` by two; `begun-by-one`, cut off after step 3, gone on with by two."""
    folder = tmp_path_factory.mktemp("sharded")
    recipe = tiny_recipe(folder, "float32")
    words: list[str] = []
    for kind in asked_for(request, "kind"):
        train(load_recipe(recipe, settings(kind, 1)), folder / "one" / kind)
        words += ["--", str(recipe), str(folder / "two" / kind), "0", *settings(kind, 2)]
    begun = cut_off(folder / "one" / "nf4", 3, folder / "begun-by-one")
    words += ["--", str(recipe), str(begun), "0", *settings("nf4", 1)]
    done = launched(SCRIPT, *words[1:], seconds=500)
    assert done.returncode == 0, done.stderr[-4000:]
    return folder


@pytest.fixture(scope="module")
def gone_on(request, runs, tmp_path_factory) -> Path:
    """`STORAGE-N`: a run that two processes had begun when both were killed, gone on with by N."""
    folder = tmp_path_factory.mktemp("gone-on")
    recipe, words = runs / "tiny.yaml", []
    for storage in asked_for(request, "storage"):
        killed = folder / f"{storage}-1"
        done = launched(SCRIPT, recipe, killed, "5", *settings(storage, 2), seconds=200)
        assert done.returncode != 0 and len(losses(killed)) == 5
        shutil.copytree(killed, folder / f"{storage}-2")
        train(load_recipe(recipe, settings(storage, 2)), killed, resume=True)
        words += ["--", str(recipe), str(folder / f"{storage}-2"), "0", *settings(storage, 2)]
    done = launched(SCRIPT, *words[1:], seconds=500)
    assert done.returncode == 0, done.stderr[-4000:]
    return folder


def stored_bytes(runs: Path, kind: str) -> int:
    """Bytes of the frozen maps' storages where one process keeps them whole."""
    return sum(layer.stored_bytes for _, layer, _ in frozen_layers(adapt(recipe_of(runs, kind)).model))


def recipe_of(runs: Path, kind: str) -> Recipe:
    return load_recipe(runs / "tiny.yaml", settings(kind, 1)).recipe


def losses(folder: Path) -> list[float]:
    return [json.loads(line)["loss"] for line in (folder / "metrics.jsonl").read_text().splitlines()]


def scores(folder: Path) -> list[float]:
    lines = map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
    return [line["eval_loss"] for line in lines if "eval_loss" in line]


def tensors(folder: Path, step: int = 8) -> dict[str, torch.Tensor]:
    return load_file(folder / "checkpoints" / f"step-{step}" / "adapter.safetensors")


def held(folder: Path, rank: int) -> dict[str, int]:
    return json.loads((folder / f"held-{rank}.json").read_text())


@pytest.mark.parametrize("kind", CASES)
def test_two_processes_that_keep_half_the_base_train_what_one_does(runs, kind):
    one, two = runs / "one" / kind, runs / "two" / kind
    assert len(losses(one)) == 8
    assert losses(two) == pytest.approx(losses(one), rel=1e-5)
    assert len(scores(one)) == 2
    assert scores(two) == pytest.approx(scores(one), rel=1e-5)
    ours, theirs = tensors(one), tensors(two)
    assert ours.keys() == theirs.keys()
    for name, tensor in ours.items():
        torch.testing.assert_close(
            theirs[name], tensor, atol=1e-4, rtol=1e-3, msg=lambda m, n=name: f"{n}: {m}"
        )


@pytest.mark.parametrize("kind", CUT)
def test_each_process_keeps_half_of_the_stored_bytes(runs, kind):
    whole = stored_bytes(runs, kind)
    for rank in range(2):
        found = held(runs / "two" / kind, rank)
        assert found["sharded"] == 14
        # Every tensor begins at a multiple of 16 bytes, and so do the parts.
        assert whole / 2 <= found["bytes"] <= whole / 2 + 14 * 5 * 16


@pytest.mark.parametrize("kind", CUT)
def test_all_processes_ask_for_equally_many_weights(runs, kind):
    first, second = (held(runs / "two" / kind, rank)["asked"] for rank in range(2))
    assert first == second > 8 * 14


@pytest.mark.slow
@pytest.mark.parametrize("storage", STORAGES)
@pytest.mark.parametrize("processes", [1, 2])
def test_a_killed_run_goes_on_with_any_number_of_processes(runs, gone_on, storage, processes):
    """By two until step 5, saved at step 3."""
    one, on = runs / "one" / storage, gone_on / f"{storage}-{processes}"
    assert losses(on) == pytest.approx(losses(one), rel=1e-5)
    assert scores(on) == pytest.approx(scores(one), rel=1e-5)
    for name, tensor in tensors(one).items():
        torch.testing.assert_close(tensors(on)[name], tensor, atol=1e-4, rtol=1e-3)
    if processes == 2:  # the number it began with: the same bits as without the kill
        assert losses(on) == losses(runs / "two" / storage)
        assert all(torch.equal(tensors(on)[name], t) for name, t in tensors(runs / "two" / storage).items())


def test_a_run_that_one_process_began_goes_on_with_two(runs):
    on, one = runs / "begun-by-one", runs / "one" / "nf4"
    assert losses(on) == pytest.approx(losses(one), rel=1e-5)
    assert json.loads((on / "run.json").read_text())["processes"] == 1
    assert held(on, 0)["bytes"] < stored_bytes(runs, "nf4")


def test_a_run_that_two_processes_began_goes_on_with_one(runs, tmp_path):
    on, one = cut_off(runs / "two" / "nf4", 3, tmp_path / "on"), runs / "one" / "nf4"
    train(load_recipe(runs / "tiny.yaml", settings("nf4", 2)), on, resume=True)
    assert losses(on) == pytest.approx(losses(one), rel=1e-5)
    assert scores(on) == pytest.approx(scores(one), rel=1e-5)
    for name, tensor in tensors(one).items():
        torch.testing.assert_close(tensors(on)[name], tensor, atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize("kind", CASES)
def test_a_checkpoint_holds_what_one_of_a_whole_base_does(runs, kind):
    files = [runs / which / kind / "checkpoints" / "step-8" for which in ("one", "two")]
    for name in ("adapter.safetensors", "optimizer.safetensors"):
        ours, theirs = (load_file(folder / name) for folder in files)
        assert {k: t.shape for k, t in ours.items()} == {k: t.shape for k, t in theirs.items()}
    states = [json.loads((folder / "state.json").read_text()) for folder in files]
    assert states[0].keys() == states[1].keys()
    assert states[0]["parameters"] == states[1]["parameters"]


def test_one_process_says_that_it_keeps_the_base_whole(tiny_recipe, tmp_path, monkeypatch):
    told: list[str] = []
    monkeypatch.setattr(run_record, "say", told.append)
    recipe = tiny_recipe(tmp_path)
    train(load_recipe(recipe, [*settings("nf4", 1), "train.max_steps=1"]), tmp_path / "run")
    assert "train.shard_base: there is one process, which keeps the base whole" in told


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["trainable=full", "adapter=null", "init=null", "quantization=none"], "none is frozen"),
        (["model.compile=true", "model.attention=sdpa"], "cannot gather weights"),
    ],
)
def test_what_cannot_be_cut_is_refused(tiny_recipe, tmp_path, overrides, message):
    with pytest.raises(RecipeError, match=message):
        load_recipe(tiny_recipe(tmp_path), ["train.shard_base=true", *overrides])
