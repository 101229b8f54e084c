"""A training begins in no folder whose files it would write over: of a generator, of differences, of anybody."""

from __future__ import annotations

import json
import os
import shutil

import pytest

from lrft.lab.runs import report
from lrft.lab.tables.scaled.replay import run_scaled
from lrft.registry.errors import UsageError
from tests.reliability.damaged_inputs import ATTACKED, CHOOSE, Prepared
from tests.reliability.full_disk import ROOT, Bench, call
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


SWEEP, SEARCH, COMPARE = ATTACKED["sweep"].words, ATTACKED["search"].words, ATTACKED["compare"].words
BASES = (
    *(
        "compare",
        "recipe.yaml",
        "eval.tasks=[loss]",
        "--base",
        "base",
        "--base",
        "tuned",
        "--out",
        "compared",
    ),
)
COUNT = ("reproduce", "dora", "--out", "tables")
MINE = json.dumps({"mine": [1, 2]})
REPORTS = [
    *((SWEEP, f"swept/sweep.{ending}") for ending in ("md", "csv", "json", "png")),
    *((SEARCH, f"found/search.{ending}") for ending in ("md", "csv", "json", "png")),
    *((SEARCH, f"found/{name}") for name in ("best.yaml", "asked.json")),
    *((COMPARE, f"compared/report.{ending}") for ending in ("md", "csv", "json", "png")),
    (BASES, "compared/bases.json"),
    (CHOOSE, "chosen/choice.json"),
    *((COUNT, f"tables/dora.{ending}") for ending in ("md", "json")),
]


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


@pytest.mark.parametrize(("words", "name"), REPORTS, ids=[name for _, name in REPORTS])
@pytest.mark.parametrize("kind", ["file", "link"])
def test_a_report_is_not_written_over_what_somebody_else_wrote(prepared, place, words, name, kind):
    path = place / name
    path.parent.mkdir()
    if kind == "link":
        (place / "elsewhere").write_text(MINE)
        path.symlink_to(place / "elsewhere")
    else:
        path.write_text(MINE)
    before = files_in(place)
    ended = call(place, words)
    assert ended.code == 2 and not ended.raised, ended
    assert ended.err.count("error: ") == 1 and path.name in ended.err and path.parent.name in ended.err, ended
    assert files_in(place) == before and path.is_symlink() == (kind == "link")


def test_the_folders_of_scaled_tables_are_not_written_over(tmp_path):
    (tmp_path / "report.md").write_text("mine")
    with pytest.raises(UsageError, match=r"holds report\.md, which a comparison would write over"):
        run_scaled(
            next((ROOT / "recipes/tables/scaled").glob("[!_]*.yaml")), tmp_path / "runs", report=tmp_path
        )
    assert os.listdir(tmp_path) == ["report.md"]


@pytest.mark.parametrize("name", ["swept", "found", "compared", "chosen"])
def test_a_report_of_an_own_folder_is_written_again_whatever_of_it_is_gone(prepared, place, name):
    words = {"swept": SWEEP, "found": SEARCH, "compared": COMPARE, "chosen": CHOOSE}[name]
    shutil.copytree(prepared.make(name), place / name)
    reports = [path for path in (place / name).iterdir() if path.suffix in (".md", ".csv", ".png")]
    for path in reports:
        path.write_text("an older one")
    assert call(place, words).code == 0
    assert all(path.read_bytes() != b"an older one" for path in reports)


def test_no_file_of_a_report_is_there_before_its_record(monkeypatch, prepared, place):
    """A command that is killed as it writes finds its own folder again."""
    shutil.copytree(prepared.make("swept"), place / "swept")
    for path in (place / "swept").glob("sweep.*"):
        path.unlink()
    written = []
    write = report.write_file
    monkeypatch.setattr(
        report, "write_file", lambda path, *more: (written.append(path.name), write(path, *more))
    )
    assert call(place, SWEEP).code == 0
    assert written[0] == "sweep.json" and len(written) == 3
