"""A disk is looked at before work begins, nothing is written twice without need, and no score is lost for a file."""

from __future__ import annotations

import json
import re
import shutil

import pytest
import torch
from torch import nn

from lrft.api.opening.open_run import open_run
from lrft.api.opening.room import dense_numbers, merged_bytes
from lrft.core.changed import Changed
from lrft.registry.axes import QUANTIZERS
from lrft.training.folder import PLAN, RECIPE, RUN, RunFolder, latest
from tests.reliability.faulty_disk import FaultyDisk
from tests.reliability.full_disk import COMMANDS, call


@pytest.fixture
def free(monkeypatch):
    """`free(n)`: the disk has so many bytes left."""

    def leave(count: int) -> None:
        monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10**9, 0, count))

    return leave


def test_a_run_whose_checkpoints_do_not_fit_is_refused_before_its_first_step(bench, free):
    place = bench.place("train", "small")
    free(10)
    ended = call(place, COMMANDS["train"].words)
    [said] = [line for line in ended.err.splitlines() if line.startswith("error: ")]
    found = re.search(
        r"run: 3 checkpoints .* \(No space left on device; ([\d,]+) bytes are needed, 10 are free", said
    )
    assert ended.code == 1 and found
    assert not (place / "run").exists()
    # 512 numbers train: their weights and two moments, three times, and the weights of three folders beside them.
    assert int(found[1].replace(",", "")) == 3 * 512 * 4 * 3 + 3 * 512 * 4
    free(int(found[1].replace(",", "")))
    ended = call(place, COMMANDS["train"].words)
    assert ended.code == 0 and "none for a merged model" in ended.err


def test_a_merge_that_does_not_fit_is_refused_before_it_is_made(bench, free):
    place = bench.place("merge", "small")
    free(10)
    ended = call(place, COMMANDS["merge"].words)
    assert ended.code == 1 and not (place / "out").exists()
    assert re.search(
        r"error: --out out: could not be written \(No space .* [\d,]+ bytes are needed, 10 ", ended.err
    )


@pytest.mark.slow
def test_what_a_merge_takes_is_known_beforehand(bench):
    expected, _ = bench.whole("merge")
    recipe, _, adaptation = open_run(RunFolder(bench.place("merge", "counted") / "run"))
    written = sum(
        len(content) for file, content in expected.items() if re.search(r"^out/model.*\.safetensors$", file)
    )
    header = 8 * 1024
    assert 0 <= written - merged_bytes(adaptation.model, recipe) < header


def test_a_run_that_goes_on_rewrites_nothing_that_says_the_same(bench):
    place = bench.place("resume", "again")
    other = shutil.copytree(place / "run", place / "runs" / "other")
    run = shutil.move(place / "run", place / "runs" / "run")
    before = {name: (run / name).stat() for name in (RECIPE, PLAN, RUN)}
    (other / RUN).write_bytes((other / RUN).read_bytes())  # the other one is the latest now
    assert latest(place / "runs") == other
    assert call(place, ("train", "recipe.yaml", "--out", "runs/run", "--resume")).code == 0
    for name, stat in before.items():
        now = (run / name).stat()
        assert now.st_ino == stat.st_ino, name
        assert (now.st_mtime_ns == stat.st_mtime_ns) == (name != RUN), name
    assert latest(place / "runs") == run


def test_scores_whose_report_cannot_be_written_are_in_the_document_beside_the_error(bench):
    place = bench.place("eval", "json")
    with FaultyDisk(place, 2, stays=True).at_work():
        ended = call(place, (*COMMANDS["eval"].words, "--json"))
    document = json.loads(ended.out)
    assert ended.code == 1 and document["adapter"]["loss"]["loss"] > 0
    assert "could not be written" in document["error"]["message"]


def test_scores_at_the_end_of_a_training_are_told_too(bench, monkeypatch):
    place = bench.place("resume", "scored")
    shutil.rmtree(place / "run" / "eval")  # of the run that this one is made of
    (place / "run" / "eval").write_text("no folder")
    ended = call(place, (*COMMANDS["resume"].words, "eval.at_end=true"))
    assert ended.code == 1 and re.search(r"^loss: loss \d", ended.err, re.MULTILINE)
    assert re.search(r"error: run/eval/adapter\.json: could not be written \(Not a directory\)", ended.err)
    (place / "run" / "eval").unlink()
    ended = call(place, COMMANDS["resume"].words)
    assert ended.code == 0 and (place / "run" / "result.json").is_file()


def test_a_base_that_is_kept_in_another_counts_once():
    """Restarts keep what they folded beside the stored weight, which is still one weight of the model."""
    stored = QUANTIZERS.get("none")(torch.zeros(4, 3), torch.zeros(4))
    model = nn.ModuleList([Changed(stored), nn.Linear(2, 2)])
    assert dense_numbers(model) == 4 * 3 + 4 + 2 * 2 + 2
