"""Rows that are finished are kept, by all that decides their numbers, and counted anew when any of it changes."""

from __future__ import annotations

import json
import shutil

import pytest
import yaml

from lrft.lab.tables.exact import count, kept, load
from lrft.lab.tables.reproduce import Options, reproduce
from lrft.registry.errors import LrftError, ToleranceError

ROWS = [
    {"label": f"r{rank}", "overrides": [f"adapter.rank={rank}"], "cells": {"trainable": 1}} for rank in (1, 2)
]


@pytest.fixture
def counted(monkeypatch) -> list[int]:
    """The ranks that were really counted, in order."""
    ranks: list[int] = []
    real = count.values

    def spy(recipe, model, metrics):
        ranks.append(recipe.adapter.rank)
        return real(recipe, model, metrics)

    monkeypatch.setattr(count, "values", spy)
    return ranks


def run(path, out, **options) -> dict:
    with pytest.raises(ToleranceError):
        reproduce([str(path)], out, options=Options(**options))
    return json.loads((out / "table.json").read_text())


def test_a_finished_row_is_not_counted_again(table_file, tmp_path, counted):
    path, out = table_file(rows=ROWS), tmp_path / "out"
    first, second = run(path, out), run(path, out)
    assert counted == [1, 2]
    assert second["numbers"] == first["numbers"] and (first["rows_kept"], second["rows_kept"]) == (0, 2)
    assert "2 rows from a run before" in (out / "table.md").read_text()


def test_fresh_counts_anew(table_file, tmp_path, counted):
    path, out = table_file(rows=ROWS), tmp_path / "out"
    run(path, out)
    assert run(path, out, fresh=True)["rows_kept"] == 0
    assert counted == [1, 2, 1, 2]


def test_only_the_row_whose_recipe_changed_is_counted_again(table_file, tmp_path, counted):
    out = tmp_path / "out"
    run(table_file(rows=ROWS), out)
    run(table_file(rows=[ROWS[0], {**ROWS[1], "overrides": ["adapter.rank=3"]}]), out)
    assert counted == [1, 2, 3]


def test_another_published_number_needs_no_count(table_file, tmp_path, counted):
    out = tmp_path / "out"
    run(table_file(rows=ROWS), out)
    changed = run(table_file(rows=[ROWS[0], {**ROWS[1], "cells": {"trainable": 7}}]), out)
    assert counted == [1, 2] and changed["numbers"][1]["published"] == 7


def test_other_code_counts_anew(table_file, tmp_path, counted, monkeypatch):
    path, out = table_file(rows=ROWS), tmp_path / "out"
    run(path, out)
    monkeypatch.setattr(kept, "code_digest", lambda recipe, entries: "other code")
    run(path, out)
    assert counted == [1, 2, 1, 2]


def test_another_configuration_file_counts_anew(table_file, tmp_path, tiny, counted):
    out, model = tmp_path / "out", tmp_path / "model"
    shutil.copytree(tiny(), model)
    path = table_file(rows=ROWS[:1], overrides=[f"model.name={model}"])
    before = run(path, out)
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(
        json.dumps({**config, "intermediate_size": config["intermediate_size"] + 8})
    )
    after = run(path, out)
    assert counted == [1, 1] and after["numbers"][0]["ours"] > before["numbers"][0]["ours"]


def test_rows_of_an_interrupted_table_are_kept(table_file, tmp_path, counted):
    path, out = table_file(rows=ROWS), tmp_path / "out"
    numbers = count.count_table(load.load_table(str(path)), kept=kept.Kept(out))
    next(numbers)
    numbers.close()
    run(path, out)
    assert counted == [1, 2]
    assert not [file for file in out.iterdir() if "tmp" in file.name]


def test_what_no_row_needs_any_more_is_forgotten(table_file, tmp_path):
    out = tmp_path / "out"
    run(table_file(rows=ROWS), out)
    run(table_file(rows=ROWS[:1]), out)
    assert len(json.loads((out / kept.FILE).read_text())["table"]) == 1


def test_a_broken_file_of_rows_is_told(table_file, tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    (out / kept.FILE).write_text("{")
    with pytest.raises(LrftError, match="remove it, or add --fresh"):
        reproduce([str(table_file(rows=ROWS))], out)
    run(table_file(rows=ROWS), out, fresh=True)


def test_a_row_may_have_a_recipe_of_its_own(table_file, tmp_path):
    rows = [
        {"label": "the table's", "cells": {"trainable": 1}},
        {"label": "its own", "recipe": "other.yaml", "cells": {"trainable": 1}},
    ]
    path = table_file(rows=rows)
    other = yaml.safe_load((tmp_path / "base.yaml").read_text())
    other["adapter"]["rank"] = 8
    (tmp_path / "other.yaml").write_text(yaml.safe_dump(other))
    ours = [number.ours for number in count.count_table(load.load_table(str(path)))]
    assert ours[1] == 2 * ours[0]
