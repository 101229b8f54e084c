"""What docs/writing-tables.md shows is true: its exact table counts as it says, the other two are valid."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml

from lrft.lab.tables import library
from lrft.lab.tables.exact.count import CONFLICT
from lrft.lab.tables.exact.schema import METRICS
from lrft.lab.tables.file import PROVENANCE
from lrft.lab.tables.full.table import counted_recipe, load_full
from lrft.lab.tables.reproduce import reproduce
from lrft.lab.tables.scaled.table import load_scaled, scaled_arms

GUIDE = (Path(__file__).parents[3] / "docs" / "writing-tables.md").read_text(encoding="utf-8")
EXAMPLES = {yaml.safe_load(text)["tier"]: text for text in re.findall(r"```yaml\n(.*?)```", GUIDE, re.S)}


@pytest.fixture
def example(tmp_path, monkeypatch):
    """`example(tier)` -> the guide's table of a tier as a file in a folder of its own."""
    monkeypatch.chdir(tmp_path)

    def write(tier: str) -> Path:
        path = tmp_path / "mine.yaml"
        path.write_text(EXAMPLES[tier])
        return path

    return write


def test_there_is_one_example_of_every_tier():
    assert EXAMPLES.keys() == library.TIERS.keys()


def test_the_exact_example_counts_what_the_guide_says(example, tmp_path, capsys):
    (record,) = reproduce([str(example("exact"))], tmp_path / "tables")
    told = re.search(r"^mine: (.*?)\.? \(", GUIDE, re.M)[1]
    assert f"mine: {told}" in capsys.readouterr().err
    (conflict,) = [number for number in record["numbers"] if number["verdict"] == CONFLICT]
    assert (
        conflict["ours"] == 24.772608
        and conflict["conflict"] in (tmp_path / "tables" / "mine.md").read_text()
    )


def test_the_arms_of_the_scaled_example_are_recipes(example):
    path = example("scaled")
    arms = scaled_arms(load_scaled(path), path)
    assert [arm.recipe.adapter.method for arm in arms] == ["lora", "dora"]
    assert {arm.recipe.train.max_steps for arm in arms} == {16} and arms[
        0
    ].recipe.quantization.method == "none"


def test_the_rows_of_the_full_example_are_recipes(example):
    path = example("full")
    table = load_full(path)
    found = [counted_recipe(table, row, path) for row in table.rows]
    assert found[0] is not None and found[0].recipe.adapter.rank == 36


def test_every_metric_and_every_provenance_is_explained():
    for name, what in METRICS.items():
        assert f"| `{name}` | {what} |" in GUIDE
    assert all(f"`{code}` " in GUIDE for code in PROVENANCE)


def test_the_folders_are_those_where_packaged_tables_lie():
    for tier, folder in library.FOLDERS.items():
        place = "recipes/tables/" if folder == "." else f"recipes/tables/{folder}/"
        assert re.search(rf"\| {tier} \|.*\| `{place}` \|", GUIDE)
