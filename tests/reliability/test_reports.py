"""Reports of sweeps, searches and comparisons on a failing disk; their runs are trainings, with tests of their own."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from lrft.files.failure import WriteError
from lrft.lab.compare import report as compared
from lrft.lab.runs.typed import command_line
from lrft.lab.search import report as searched
from lrft.lab.sweep import report as swept
from tests.reliability.faulty_disk import ERRORS, FaultyDisk

SWEEP = {
    "recipe": "tiny.yaml",
    "metric": "loss",
    "command": "lrft sweep tiny.yaml optimizer.lr=1,2",
    "keys": ["optimizer.lr"],
    "rows": [
        {
            "label": f"lr={lr}",
            "values": {"optimizer.lr": lr},
            "score": float(lr),
            "loss": 1.0,
            "eval_loss": None,
            "trainable": 8,
            "seconds": 1.0,
            "run": f"runs/{lr}",
        }
        for lr in ("1", "2")
    ],
}


SEARCH = {
    **SWEEP,
    "method": {"method": "random"},
    "seed": 0,
    "budget": 2,
    "best": 0,
    "best_recipe": "best.yaml",
    "refused": 0,
    "exhausted": False,
    "rows": [
        {**row, "arm": arm, "bytes": 8, "step_seconds": 0.5, "failure": None, "front": ["bytes"]}
        for arm, row in enumerate(SWEEP["rows"])
    ],
}


def sweep(place: Path) -> None:
    swept.write_report(SWEEP, place / "out")


def search(place: Path) -> None:
    searched.write_report(SEARCH, place / "out")


def comparison(place: Path) -> None:
    compared.write_report({"arms": []}, place / "out", "Two arms")


@pytest.fixture(autouse=True)
def plain(monkeypatch):
    """A comparison has a long record, of which only the writing is looked at here."""
    monkeypatch.setattr(compared, "body", lambda record: ["- nothing"])
    monkeypatch.setattr(compared, "seeds_table", lambda record: [["arm", "seed"], ["a", 1]])
    for module in (compared, searched, swept):
        monkeypatch.setattr(module, "draw", lambda record, path: False)


@pytest.mark.parametrize(("write", "files"), [(sweep, 3), (search, 3), (comparison, 3)])
def test_every_file_is_there_or_said_not_to_be(tmp_path, write, files):
    (tmp_path / "whole").mkdir()
    with FaultyDisk(tmp_path / "whole").at_work() as disk:
        write(tmp_path / "whole")
    assert len(list((tmp_path / "whole" / "out").iterdir())) == files
    expected = {path.name: path.read_bytes() for path in (tmp_path / "whole" / "out").iterdir()}
    for at in range(1, len(disk.done) + 1):
        number = ERRORS[at % 4]
        place = tmp_path / str(at)
        place.mkdir()
        with pytest.raises(WriteError) as caught, FaultyDisk(place, at, number, at % 2 == 0).at_work():
            write(place)
        said = str(caught.value)
        assert (
            said.startswith(f"--out {place / 'out'}: ") and os.strerror(number) in said and "\n" not in said
        )
        left = {path.name: path.read_bytes() for path in place.rglob("*") if path.is_file()}
        assert left.items() <= expected.items(), disk.done[at - 1]
        write(place)
        assert {path.name: path.read_bytes() for path in (place / "out").iterdir()} == expected


def test_the_command_in_a_report_holds_no_secret(monkeypatch):
    monkeypatch.setenv("RAY_TOKEN", "abcdef123456-secret")
    words = [
        "/usr/bin/lrft",
        "sweep",
        "a.yaml",
        "--cluster-set",
        "address=ray://me:pw12345@host:1/?key=k1234567",
    ]
    monkeypatch.setattr("sys.argv", [*words, "--cluster-set", "token=abcdef123456-secret"])
    said = command_line()
    assert "lrft sweep a.yaml" in said and "$RAY_TOKEN" in said and "***@host" in said
    assert not any(secret in said for secret in ("pw12345", "k1234567", "abcdef123456-secret"))
