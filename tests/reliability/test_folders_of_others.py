"""A training begins in no folder whose files it would write over: of a generator, of differences, of anybody."""

from __future__ import annotations

import shutil

import pytest

from tests.reliability.damaged_inputs import Prepared
from tests.reliability.full_disk import Bench, call
from tests.reliability.struck import files_in

TRAIN = ("train", "recipe.yaml", "--out", "place", "train.max_steps=1")
FEDERATED = "federate={clients: 2, rounds: 1, local_steps: 1, partition: even, aggregate: fedavg}"
FEDERATE = (
    "federate",
    "recipe.yaml",
    "--out",
    "place",
    "train.max_steps=null",
    "train.eval_every=1",
    FEDERATED,
)


@pytest.fixture(scope="module")
def prepared(bench: Bench) -> Prepared:
    return Prepared(bench)


@pytest.fixture
def place(prepared: Prepared):
    """A folder to call in, with the recipe."""
    found = prepared.place((), prepared.bench.folder)
    yield found
    shutil.rmtree(found)


@pytest.mark.parametrize("name", ["generator", "difference", "choice/posterior"])
@pytest.mark.parametrize(
    "words", [TRAIN, (*TRAIN, "--resume"), FEDERATE], ids=["train", "resume", "federate"]
)
def test_a_folder_with_another_manifest_is_refused_and_stays(prepared, place, name, words):
    shutil.copytree(prepared.make(name.partition("/")[0]), place / "made")
    shutil.copytree(place / "made" / name.partition("/")[2], place / "place")
    before = files_in(place)
    ended = call(place, words)
    assert ended.code == 2 and not ended.raised, ended
    assert "error: --out place: holds manifest.json, which a run would write over, and no run" in ended.err
    assert files_in(place) == before


@pytest.mark.parametrize("name", ["adapter", "last", "best", "result.json", "metrics.jsonl"])
def test_a_name_that_a_run_gives_is_refused_where_somebody_else_gave_it(place, name):
    path = place / "place" / name
    (path if "." not in name else path.parent).mkdir(parents=True)
    (path if "." in name else path / "mine.txt").write_text("mine")
    before = files_in(place)
    ended = call(place, TRAIN)
    assert ended.code == 2 and f"--out place: holds {name}, which a run would write over" in ended.err, ended
    assert files_in(place) == before


def test_a_folder_with_other_things_is_trained_in_and_they_stay(place):
    (place / "place").mkdir()
    (place / "place" / "notes.txt").write_text("mine")
    assert call(place, TRAIN).code == 0
    assert (place / "place" / "notes.txt").read_text() == "mine"
    assert "already holds a run" in call(place, TRAIN).err
