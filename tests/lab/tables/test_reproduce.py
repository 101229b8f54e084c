"""`lrft reproduce`: numbers counted from what training attaches, misprints shown and never fitted, misses refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import generated
import tables_page
from lrft.lab.models import Models
from lrft.lab.tables.exact import load
from lrft.lab.tables.exact.count import ABSENT, CONFLICT, EQUAL, MISSED, count_table, judge_count
from lrft.lab.tables.exact.report import markdown
from lrft.lab.tables.exact.schema import Column
from lrft.lab.tables.file import PROVENANCE, Cell
from lrft.lab.tables.reproduce import reproduce
from lrft.registry.errors import RecipeError, ToleranceError, UsageError


def counted(path: Path) -> list:
    return list(count_table(load.load_table(str(path))))


def test_a_count_is_that_of_the_modules(table_file, tiny):
    (number,) = counted(table_file())
    config = json.loads((tiny() / "config.json").read_text())
    h, inner, layers = config["hidden_size"], config["intermediate_size"], config["num_hidden_layers"]
    kv = h * config["num_key_value_heads"] // config["num_attention_heads"]
    widths = [h + h, h + kv, h + kv, h + h, h + inner, h + inner, inner + h]
    assert number.ours == 4 * layers * sum(widths)
    assert number.verdict == MISSED


def test_rows_are_counted_on_one_model_that_is_given_back(table_file):
    rows = [
        {"label": f"r{rank}", "overrides": [f"adapter.rank={rank}"], "cells": {"trainable": 1}}
        for rank in (1, 2, 4)
    ]
    rows.append({"label": "full", "overrides": ["~adapter", "trainable=full"], "cells": {"trainable": 1}})
    rows.append({"label": "r1 again", "overrides": ["adapter.rank=1"], "cells": {"trainable": 1}})
    ours = [number.ours for number in counted(table_file(rows=rows))]
    assert ours[1] == 2 * ours[0] and ours[2] == 4 * ours[0] and ours[4] == ours[0]


def test_a_method_that_is_not_there_says_so_and_misses_nothing(table_file, tmp_path):
    rows = [{"label": "x", "overrides": ["adapter={method: telepathy, rank: 3}"], "cells": {"trainable": 5}}]
    (number,) = counted(table_file(rows=rows))
    assert number.verdict == ABSENT and number.ours is None
    reproduce([str(table_file(rows=rows))], tmp_path / "out")


def test_a_wrong_override_is_not_taken_for_a_method_that_is_not_there(table_file):
    rows = [{"label": "x", "overrides": ["adapter.rnak=3"], "cells": {"trainable": 5}}]
    with pytest.raises(RecipeError, match="row 'x'"):
        counted(table_file(rows=rows))


@pytest.mark.parametrize(
    ("published", "ours", "column", "conflict", "expected"),
    [
        (0.83, 0.8256, {"tolerance": 0.011}, None, EQUAL),
        (0.35, 0.361, {"tolerance": 0.011}, None, EQUAL),
        (0.35, 0.3612, {"tolerance": 0.011}, None, MISSED),
        (0.35, 0.3612, {"tolerance": 0.011}, "the row above is printed again", CONFLICT),
        (200, 200.9, {"relative": 0.005}, None, EQUAL),
        (200, 201.1, {"relative": 0.005, "tolerance": 0.5}, None, MISSED),
        (7, 7, {}, None, EQUAL),
        (7, 8, {}, None, MISSED),
    ],
)
def test_verdicts(published, ours, column, conflict, expected):
    cell = Cell(published=published, conflict=conflict)
    assert judge_count(cell, Column(metric="trainable", provenance="T", **column), ours) == expected


def test_a_tolerance_of_a_cell_stands_in_for_both_of_the_column():
    cell, column = Cell(published=100, tolerance=0), Column(metric="trainable", provenance="T", relative=0.1)
    assert judge_count(cell, column, 101) == MISSED and judge_count(Cell(published=100), column, 101) == EQUAL


def test_a_miss_ends_in_6_after_the_files_are_written(table_file, tmp_path):
    path = table_file()
    with pytest.raises(ToleranceError, match="LoRA r4, trainable: published 1, ours") as missed:
        reproduce([str(path)], tmp_path / "out")
    assert missed.value.exit_code == 6
    record = json.loads((tmp_path / "out" / "table.json").read_text())
    assert record["verdicts"] == {MISSED: 1} and record["numbers"][0]["provenance"] == "C"
    assert "| LoRA r4 | trainable | 1 | C |" in (tmp_path / "out" / "table.md").read_text()


def test_a_mistake_is_told_with_line_and_key(table_file):
    path = table_file(rows=[{"label": "x", "cells": {"trainable": 1}, "colour": "red"}])
    with pytest.raises(RecipeError) as wrong:
        load.load_table(str(path))
    (problem,) = wrong.value.problems
    assert problem.file == str(path) and problem.line and problem.key == "rows.0.colour"
    with pytest.raises(RecipeError, match="unknown column 'size'; columns: trainable"):
        load.load_table(str(table_file(rows=[{"label": "x", "cells": {"size": 1}}])))
    with pytest.raises(RecipeError, match="the same label"):
        row = {"label": "x", "cells": {"trainable": 1}}
        load.load_table(str(table_file(rows=[row, row])))
    with pytest.raises(RecipeError, match=r"columns\.trainable\.metric: 'speed' is none of"):
        counted(table_file(columns={"trainable": {"metric": "speed", "provenance": "C"}}))
    with pytest.raises(UsageError, match="no table 'dorra'"):
        load.load_table("dorra")


def test_conflicts_stand_beside_the_table(table_file):
    cell = {"published": 2, "conflict": "a misprint"}
    path = table_file(rows=[{"label": "x", "cells": {"trainable": cell}}])
    loaded = load.load_table(str(path))
    assert "- x, trainable: a misprint." in markdown(loaded, list(count_table(loaded)))


# Tables that are counted in a second each, of every kind of number.
QUICK = ("fed_sb", "glue_memory", "other_counts", "peft_metamathqa", "sltrain_memory", "vera")


@pytest.fixture(scope="module")
def quick_tables():
    models = Models()
    return {name: list(count_table(load.load_table(name), models)) for name in QUICK}


@pytest.fixture(scope="module")
def every_table():
    return tables_page.counted()


def agree(tables):
    numbers = [number for found in tables.values() for number in found]
    assert {number.provenance for number in numbers} <= PROVENANCE.keys()
    assert [n for n in numbers if n.verdict == MISSED] == []
    assert sum(n.verdict == EQUAL for n in numbers) > 0.5 * len(numbers)
    assert [(n.row, n.column) for n in numbers if n.conflict and n.verdict == EQUAL] == [], (
        "a conflict is told of a number that agrees"
    )


def test_no_number_of_a_quick_table_is_missed_and_none_is_without_provenance(quick_tables):
    agree(quick_tables)


def test_no_number_of_any_table_is_missed_and_none_is_without_provenance(every_table):
    agree(every_table)


def test_all_63_runs_of_pefts_comparison_are_there_and_lrfts_own_methods_count(quick_tables):
    numbers = quick_tables["peft_metamathqa"]
    assert len(numbers) == 63
    counted = {number.row for number in numbers if number.verdict == EQUAL}
    assert counted >= {
        "adalora/rank32",
        "full-finetuning/lr_0.00001",
        "ln_tuning/default",
        "lora/rank10-target-mlp",
        "lora/rank32",
        "lora/rank32-dora",
        "lora/rank32-lorafa",
        "lora/rank64",
        "lora/rank64-rslora",
    }


def test_the_pages_of_quick_tables_are_current(quick_tables):
    texts = {
        tables_page.FOLDER / f"{n}.md": markdown(load.load_table(n), found)
        for n, found in quick_tables.items()
    }
    assert not generated.out_of_date(texts, []), "run scripts/tables_page.py"


def test_the_pages_of_tables_are_current(every_table):
    stale = generated.out_of_date(tables_page.pages(every_table), [tables_page.FOLDER])
    assert not stale, "run scripts/tables_page.py"
