"""docs/tables/ beside the exact tier: replays from their records, and the full tier with nothing claimed of it."""

from __future__ import annotations

import json
import re

import pytest

import tables_page
from lrft.lab.tables import library
from lrft.lab.tables.full.table import load_full

ARM = {"label": "LoRA", "rate": 1e-3, "mean": 1.5, "interval": [1.4, 1.6], "difference": None}
RECORD = {
    "name": "s5_rslora",
    "title": "S5: rsLoRA",
    "paper": "Somebody, 2023.",
    "claim": "A high rank learns more.",
    "provenance": "J",
    "bed": "A small model.",
    "scale": "It says nothing of 7B.",
    "overrides": [],
    "verdict": "refuted",
    "criteria": [{"stated": "rsLoRA has the lower loss", "name": "refuted", "reason": "2 against 1"}],
    "notes": [],
    "metric": "eval_loss",
    "seeds": [10, 11],
    "rates": [0.0003, 0.001],
    "arms": [
        ARM,
        {**ARM, "label": "rsLoRA", "difference": {"mean": 0.25, "interval": [0.2, 0.3]}},
        {**ARM, "label": "lost", "mean": None, "interval": None, "difference": {"mean": None, "interval": None}},
    ],
    "environments": [
        {
            "hardware": {"machine": "x86_64", "cores": 2, "gpu": None},
            "versions": {"torch": "2.13.0"},
            "git": "abc1234",
        }
    ],
}  # fmt: skip


def test_a_replay_shows_claim_verdict_criteria_bed_scale_and_where_it_ran():
    text = tables_page.replay(RECORD)
    for shown in (
        "# S5: rsLoRA\n",
        "Somebody, 2023. Claim (J): A high rank learns more.",
        "Verdict: **refuted**. It says nothing of 7B.",
        "Bed: A small model.",
        "| rsLoRA has the lower loss | refuted | 2 against 1 |",
        "| rsLoRA | 0.001 | 1.5000 | [1.4000, 1.6000] | +0.2500 | [+0.2000, +0.3000] |",
        "| lost | 0.001 | diverged |  |  |  |",
        "- Seeds 10, 11; rates 0.0003, 0.001.",
        "- machine x86_64, cores 2, torch 2.13.0, git abc1234",
    ):
        assert shown in text, shown
    assert not re.search(r"\b\d{4}-\d\d-\d\d\b", text)


def test_committed_records_are_on_the_page_and_the_rest_is_named_as_not_run(tmp_path, monkeypatch):
    monkeypatch.setattr(tables_page, "REPLAYS", tmp_path)
    (tmp_path / "s5_rslora.json").write_text(json.dumps(RECORD))
    found = tables_page.pages({})
    assert found[tables_page.FOLDER / "s5_rslora.md"].startswith("# S5: rsLoRA\n")
    text = found[tables_page.PAGE]
    assert "| [S5: rsLoRA](s5_rslora.md) | A high rank learns more. | refuted |" in text
    (missing,) = re.findall(r"Not run here: ([\w, ]+)\. ", text)
    assert set(missing.split(", ")) == library.packaged("scaled").keys() - {"s5_rslora"}


@pytest.mark.parametrize("path", sorted(tables_page.REPLAYS.glob("*.json")), ids=lambda path: path.stem)
def test_a_committed_record_is_that_of_a_packaged_replay(path):
    record = json.loads(path.read_text(encoding="utf-8"))
    assert record["name"] == path.stem and path.stem in library.packaged("scaled")
    assert record["environments"] and all(one["git"] for one in record["environments"])


def test_every_result_of_the_full_tier_is_printed_with_its_provenance_and_none_of_ours():
    for name, entry in library.packaged("full").items():
        table = load_full(entry.path)
        text = tables_page.full(name, table)
        rows = [line.split(" | ") for line in text.splitlines() if line.startswith("| ")]
        heads = rows[0][1:]
        assert [head.rstrip(" |").rpartition(" ")[2] for head in heads] == [
            column.provenance for column in table.columns.values()
        ]
        printed = [cell.strip(" |") for row in rows[2:] for cell in row[1:]]
        expected = [tables_page._published(row.cells.get(key)) for row in table.rows for key in table.columns]
        assert printed == expected
    assert "**None was run here**" in tables_page.FULL
