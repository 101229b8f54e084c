"""One command for tables of every tier: found by name or file, run as their tier asks, listed with cost and verdict."""

from __future__ import annotations

import json
import subprocess
import sys
import types
from collections import Counter
from pathlib import Path

import pytest
from typer.testing import CliRunner

from lrft.cli import app
from lrft.lab.compare import report
from lrft.lab.tables import library
from lrft.lab.tables import reproduce as job
from lrft.lab.tables.full import report as full_report
from lrft.lab.tables.listing import listing
from lrft.lab.tables.reproduce import Options, reproduce
from lrft.lab.tables.scaled import replay as scaled
from lrft.lab.tables.sizes import sizes
from lrft.registry.errors import LrftError, RecipeError, ToleranceError, UsageError

REPLAY = "s5_rslora"


def run(*arguments: object):
    return CliRunner().invoke(app, ["reproduce", *map(str, arguments)])


RECORD = {
    "name": REPLAY,
    "title": "S5",
    "paper": "P.",
    "claim": "C.",
    "provenance": "J",
    "bed": "B.",
    "scale": "S.",
    "overrides": [],
    "verdict": "refuted",
    "criteria": [{"stated": "LoRA is lower", "name": "refuted", "reason": "it is not"}],
    "notes": [],
    "seconds": 42.0,
}


@pytest.fixture
def replayed(monkeypatch) -> list[tuple]:
    """What `run_scaled` was asked for; nothing trains."""
    calls: list[tuple] = []

    def fake(path, out, seeds=None, jobs=1, overrides=(), report=None, trust_remote_code=False, cluster=None):
        assert not trust_remote_code
        calls.append((path, out, seeds, jobs, list(overrides), report))
        return RECORD

    monkeypatch.setattr(scaled, "run_scaled", fake)
    monkeypatch.setattr(report, "body", lambda record: ["the sections of a comparison"])
    return calls


@pytest.fixture
def full_table(monkeypatch, tmp_path) -> Path:
    """A table file of the full tier, and a module that stands for its trainings."""
    numbers = [{"row": "r", "column": "c", "published": 74.7, "ours": 60.0, "verdict": "missed"}]
    module = types.ModuleType("lrft.lab.tables.full.results")
    module.run_full = (
        lambda path, out, *, seeds=None, jobs=1, overrides=(), rows=None, trust_remote_code=False, cluster=None: {  # type: ignore[attr-defined]
            "name": path.stem,
            "tier": "full",
            "verdicts": {"missed": 1},
            "numbers": numbers,
            "asked": [seeds, jobs, list(overrides)],
        }
    )
    monkeypatch.setattr(full_report, "full_markdown", lambda record: f"# {record['name']}\n")
    monkeypatch.setitem(sys.modules, "lrft.lab.tables.full.results", module)
    path = tmp_path / "mine.yaml"
    path.write_text("tier: full\ntitle: t\n")
    return path


def test_the_name_of_a_table_is_that_of_one_tier():
    names = [
        path.stem
        for folder in library.FOLDERS.values()
        for path in (library.folder() / folder).glob("[!_]*.yaml")
    ]
    assert [name for name, count in Counter(names).items() if count > 1] == []
    assert library.packaged().keys() == set(names)


def test_a_table_of_any_tier_is_found_by_name_alone():
    assert [library.find(name).tier for name in ("dora", REPLAY)] == ["exact", "scaled"]


def test_without_a_name_a_tier_means_all_of_its_tables():
    assert {entry.tier for entry in library.choose([])} == {"exact"}
    assert [entry.name for entry in library.choose([], "scaled")] == list(library.packaged("scaled"))


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("dora", "--tier", "scaled"), "dora is a table of the exact tier; leave --tier out, or name a scaled table"),
        (("dorra",), "no table 'dorra'; did you mean dora"),
        (("dora", "--tier", "huge"), "--tier huge: choose exact, scaled or full"),
        (("dora", "--seeds", "3"), "--seeds: tables of the exact tier train nothing; leave it out"),
        (("dora", "--device", "cuda"), "--device: tables of the exact tier train nothing; leave it out"),
        ((REPLAY, "--seeds", "many"), "--seeds many: write how many (3), a range (10-14), or a list (5,7)"),
    ],
)  # fmt: skip
def test_what_cannot_be_done_is_said_in_one_sentence(arguments, said, tmp_path):
    done = run(*arguments, "--out", tmp_path)
    assert isinstance(done.exception, UsageError) and done.exception.exit_code == 2
    assert said in str(done.exception) and "\n" not in str(done.exception)
    assert not list(tmp_path.iterdir())


def test_the_tier_of_a_file_is_what_it_says(full_table, tmp_path):
    assert library.find(str(full_table)).tier == "full"
    exact = tmp_path / "exact.yaml"
    exact.write_text("title: t\n")
    assert library.find(str(exact)).tier == "exact"
    exact.write_text("tier: tiny\n")
    with pytest.raises(RecipeError, match="tier: 'tiny' is none of exact, scaled, full"):
        library.find(str(exact))


def test_a_refuted_claim_is_a_result_and_no_error(replayed, tmp_path):
    done = run(REPLAY, "--out", tmp_path, "--seeds", "10-11", "--jobs", 2, "--device", "cpu")
    assert done.exit_code == 0, done.exception
    path = library.find(REPLAY).path
    asked = (path, tmp_path / "replays", [10, 11], 2, ["train.device=cpu"], tmp_path / REPLAY)
    assert replayed == [asked]
    page = (tmp_path / f"{REPLAY}.md").read_text()
    assert (
        page.startswith("# S5\n")
        and "Verdict: **refuted**. S." in page
        and "| LoRA is lower | refuted |" in page
    )
    assert json.loads((tmp_path / f"{REPLAY}.json").read_text())["verdict"] == "refuted"


def test_a_missed_full_table_ends_in_6_after_its_files_are_written(full_table, tmp_path):
    with pytest.raises(ToleranceError, match=r"mine: r, c: published 74\.7, ours 60") as missed:
        reproduce([str(full_table)], tmp_path / "out", options=Options(seeds=[1], jobs=2, device="cuda"))
    assert missed.value.exit_code == 6
    record = json.loads((tmp_path / "out" / "mine.json").read_text())
    assert record["asked"] == [[1], 2, ["train.device=cuda"]]
    assert (tmp_path / "out" / "mine.md").read_text() == "# mine\n"


def test_tables_of_several_tiers_run_in_one_call(table_file, replayed, tmp_path):
    with pytest.raises(ToleranceError):  # the exact one; the replay comes after it all the same
        reproduce([str(table_file()), REPLAY], tmp_path / "out", options=Options(seeds=[3]))
    assert {path.name for path in (tmp_path / "out").glob("[!.]*.json")} == {"table.json", f"{REPLAY}.json"}


def test_the_page_of_an_exact_table_says_where_it_ran_and_for_how_long(table_file, tmp_path):
    with pytest.raises(ToleranceError):
        reproduce([str(table_file())], tmp_path / "out")
    page = (tmp_path / "out" / "table.md").read_text()
    record = json.loads((tmp_path / "out" / "table.json").read_text())
    assert f"torch {record['versions']['torch']}" in page and f"cores {record['hardware']['cores']}" in page
    assert f"- {record['seconds']:g} s\n" in page and record["git"] in page


def test_ls_shows_tier_rows_cost_and_verdict_of_every_table(replayed, tmp_path):
    rows = {name: rest for name, *rest in listing(tmp_path)}
    assert rows.keys() == library.packaged().keys()
    assert rows["dora"] == ["exact", 32, "seconds to a minute, no weights", "not run yet"]
    reproduce(["fed_sb", REPLAY], tmp_path, options=Options(seeds=[3]))
    rows = {name: rest for name, *rest in listing(tmp_path)}
    assert rows[REPLAY] == ["scaled", 4, "42 s", "refuted"]
    assert rows["fed_sb"][2].endswith(" s") and rows["fed_sb"][3] == "9 equal, 1 conflict"
    shown = run("ls", "--out", tmp_path)
    assert shown.exit_code == 0 and "refuted" in shown.output and "42 s" in shown.output


def test_ls_names_a_record_that_cannot_be_read(tmp_path):
    (tmp_path / "dora.json").write_text("{")
    with pytest.raises(LrftError, match=r"dora\.json: is no record of a table"):
        listing(tmp_path)


def test_ls_needs_no_torch():
    script = "import sys; from lrft.lab.tables.listing import listing; from pathlib import Path; "
    script += "listing(Path('nowhere'))"
    done = subprocess.run(
        [sys.executable, "-c", f"{script}; print('torch' in sys.modules)"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.strip() == "False"


def test_a_dry_run_says_what_would_run_and_runs_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(job, "reproduce", None)
    done = run(REPLAY, "--dry-run", "--seeds", "3", "--json", "--out", tmp_path)
    assert done.exit_code == 0, done.exception
    (found,) = json.loads(done.stdout)
    arms = {row["label"]: row for row in found["rows"]}
    assert found["runs"].startswith(
        "24 runs, 12 of them to choose among 3 rates"
    )  # 4 arms x (3 rates + 3 seeds)
    assert arms["LoRA r128"]["trainable"] == 32 * arms["LoRA r4"]["trainable"] == 39_075_840
    assert arms["LoRA r128"]["memory_bytes"] > arms["LoRA r4"]["memory_bytes"] > 4 * 134_515_008
    assert not list(tmp_path.iterdir())


def test_a_dry_run_of_an_exact_table_only_counts_its_rows():
    (found,) = sizes(["dora"])
    assert found["runs"] == "32 rows are counted, nothing trains" and found["tier"] == "exact"
