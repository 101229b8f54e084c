"""Tables of the full tier: strict files, sized without weights, run as processes, judged by stated tolerances."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import yaml

from lrft.lab.tables.full import runs as full_runs
from lrft.lab.tables.full.report import full_markdown
from lrft.lab.tables.full.results import run_full, size_full
from lrft.lab.tables.full.table import load_full
from lrft.registry.errors import LrftError, RecipeError, UsageError

# Scores perplexity 20 + seed and an accuracy of a half; a file called `unscored` beside the runs makes it fail.
SCORER = """
import json, pathlib, sys
import yaml
folder = pathlib.Path(sys.argv[1])
root = folder.parent.parent
with open(root / "scored", "a") as file:
    file.write(folder.name + "\\n")
if (root / "unscored").exists():
    print("error: data.eval.source: the hub did not give it"); sys.exit(3)
seed = int(folder.name.split("seed")[1].split("-")[0])
(folder / "eval").mkdir()
(folder / "eval" / "adapter.json").write_text(json.dumps({"tasks": {
    "loss": {"n": 6, "metrics": {"loss": 3.0, "perplexity": 20.0 + seed}},
    "multiple_choice": {"n": 4, "metrics": {"acc_label": 0.5}},
    "multiple_choice-2": {"n": 4, "metrics": {"acc_label": 0.7}},
}}))
"""


@pytest.fixture
def scorer(stand_in, monkeypatch):
    """Trainings and scores are stand-ins."""
    monkeypatch.setattr(
        full_runs, "evaluation_command", lambda folder: [sys.executable, "-c", SCORER, str(folder)]
    )


@pytest.fixture
def table(recipe, tmp_path):
    """`table(key=value)` -> a table file of one LoRA row."""

    def write(rows=None, **changes) -> Path:
        name = recipe("base").name
        plain = {
            "title": "A full table",
            "paper": "Nobody, 2026.",
            "tier": "full",
            "cost": "a minute",
            "settings": ["rank 4 (T)"],
            "columns": {
                "perplexity": {"metric": "loss.perplexity", "tolerance": 0.5, "provenance": "T"},
                "mean": {
                    "metric": ["multiple_choice.acc_label", "multiple_choice-2.acc_label"],
                    "scale": 100,
                    "unit": "%",
                    "tolerance": 1,
                    "provenance": "R",
                },
                "MT-Bench": {"provenance": "T"},
            },
            "rows": [
                {"recipe": name, **row}
                for row in rows or [{"label": "LoRA r4", "cells": {"perplexity": 20.3}}]
            ],
            **changes,
        }
        path = tmp_path / "table.yaml"
        path.write_text(yaml.safe_dump({key: value for key, value in plain.items() if value is not None}))
        return path

    return write


def numbers(record) -> dict[tuple[str, str], dict]:
    return {(n["row"], n["column"]): n for n in record["numbers"]}


def test_a_row_is_trained_scored_and_compared(scorer, table, tmp_path):
    cells = {"perplexity": 20.3, "mean": 63.0, "MT-Bench": 5.0}
    record = run_full(table([{"label": "LoRA", "cells": cells}]), tmp_path / "out")
    found = numbers(record)
    assert found["LoRA", "perplexity"]["ours"] == 20.0
    assert found["LoRA", "perplexity"]["difference"] == pytest.approx(-0.3)
    assert found["LoRA", "mean"]["ours"] == pytest.approx(60.0)
    assert found["LoRA", "mean"]["scored_rows"] == 8
    verdicts = [found["LoRA", name]["verdict"] for name in cells]
    assert verdicts == ["within tolerance", "missed", "no such benchmark in lrft"]
    assert record["verdicts"] == dict.fromkeys(verdicts, 1)
    assert not list((tmp_path / "out").glob("*.md")), "the report is the caller's"


def test_seeds_are_averaged_and_by_default_the_recipe_states_its_own(scorer, table, tmp_path):
    path = table([{"label": "LoRA", "overrides": ["train.seed=5"], "cells": {"perplexity": 21}}])
    assert numbers(run_full(path, tmp_path / "out"))["LoRA", "perplexity"]["values"] == [25.0]
    three = numbers(run_full(path, tmp_path / "out", seeds=3, jobs=2))["LoRA", "perplexity"]
    assert (three["values"], three["ours"]) == ([20.0, 21.0, 22.0], 21.0)
    chosen = run_full(path, tmp_path / "out", seeds=[1, 7])
    assert numbers(chosen)["LoRA", "perplexity"]["values"] == [21.0, 27.0]


def test_what_is_finished_is_neither_trained_nor_scored_again(scorer, table, tmp_path):
    path, out = table(), tmp_path / "out"
    first = run_full(path, out, seeds=2)
    again = run_full(path, out, seeds=3)
    assert len((out / "started").read_text().split()) == 3
    assert len((out / "scored").read_text().split()) == 3
    assert (
        numbers(again)["LoRA r4", "perplexity"]["values"][:2]
        == numbers(first)["LoRA r4", "perplexity"]["values"]
    )


def test_a_failed_score_is_one_sentence_and_the_training_is_kept(scorer, table, tmp_path):
    path, out = table(), tmp_path / "out"
    out.mkdir()
    (out / "unscored").touch()
    with pytest.raises(
        LrftError, match=r"^LoRA r4, .*scoring ended with exit code 3: data\.eval\.source"
    ) as error:
        run_full(path, out)
    assert error.value.exit_code == 3
    assert "\n" not in str(error.value)
    (out / "unscored").unlink()
    run_full(path, out)
    assert len((out / "started").read_text().split()) == 1


def test_a_failed_training_names_the_row_and_what_is_missing(scorer, table, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "broken").touch()
    with pytest.raises(LrftError, match=r"LoRA r4, .*data\.train: no rows") as error:
        run_full(table(), tmp_path / "out")
    assert error.value.exit_code == 3


def test_a_diverged_row_has_no_number(scorer, table, tmp_path):
    path = table([{"label": "LoRA", "overrides": ["optimizer.lr=0.9"], "cells": {"perplexity": 20}}])
    found = numbers(run_full(path, tmp_path / "out"))["LoRA", "perplexity"]
    assert (found["ours"], found["verdict"]) == (None, "diverged")


def test_only_the_rows_asked_for_are_run(scorer, table, tmp_path):
    rows = [
        {"label": "low", "overrides": ["adapter.rank=2"], "cells": {"perplexity": 20}},
        {"label": "high", "overrides": ["adapter.rank=8"], "cells": {"perplexity": 20}},
    ]
    path = table(rows)
    found = numbers(run_full(path, tmp_path / "out", rows=["high"]))
    assert found["low", "perplexity"]["verdict"] == "not run"
    assert found["high", "perplexity"]["verdict"] == "within tolerance"
    with pytest.raises(UsageError, match=r"no row .hihg.*high"):
        run_full(path, tmp_path / "out", rows=["hihg"])


def test_rows_of_one_recipe_share_its_run(scorer, table, tmp_path):
    rows = [
        {"label": label, "cells": {"perplexity": value}} for label, value in (("paper", 20), ("README", 25))
    ]
    found = numbers(run_full(table(rows), tmp_path / "out"))
    assert [number["verdict"] for number in found.values()] == ["within tolerance", "missed"]
    assert len((tmp_path / "out" / "started").read_text().split()) == 1
    assert len((tmp_path / "out" / "scored").read_text().split()) == 1


def test_rows_without_a_method_or_a_recipe_are_recorded(scorer, table, tmp_path):
    rows = [
        {"label": "later", "overrides": ["adapter.method=not_there_yet"], "cells": {"perplexity": 1.5}},
        {"label": "other", "recipe": None, "cells": {"perplexity": 2.5}},
        {"label": "unread"},
    ]
    path = table(rows)
    record = run_full(path, tmp_path / "out")
    found = numbers(record)
    assert found["later", "perplexity"]["verdict"] == "method not in lrft yet"
    assert found["other", "perplexity"]["verdict"] == "no recipe"
    assert [row["trainable"] is None for row in record["rows"]] == [True, True, False]
    assert not (tmp_path / "out" / "started").exists(), "nothing to compare with, nothing to run"
    text = full_markdown(record)
    assert "| later | perplexity | 1.5 | T |  |  | method not in lrft yet |" in text
    assert "| unread |  | no verified number |" in text


def test_a_known_conflict_is_shown_and_is_no_miss(scorer, table, tmp_path):
    cell = {"published": 30.0, "conflict": "the table has 30, the text 20"}
    record = run_full(table([{"label": "LoRA", "cells": {"perplexity": cell}}]), tmp_path / "out")
    assert numbers(record)["LoRA", "perplexity"]["verdict"] == "conflict"
    assert "- LoRA, perplexity: the table has 30, the text 20." in full_markdown(record)


def test_a_score_that_a_column_needs_must_be_there(scorer, table, tmp_path):
    columns = {"x": {"metric": "loss.bits", "tolerance": 1, "provenance": "T"}}
    path = table([{"label": "LoRA", "cells": {"x": 1}}], columns=columns)
    with pytest.raises(LrftError, match=r"no score loss\.bits; there is loss\.loss, loss\.perplexity"):
        run_full(path, tmp_path / "out")


def test_sizes_are_counted_on_the_configuration_without_the_hub(table):
    rows = [
        {
            "label": "LoRA",
            "overrides": ["model.name=nobody/nothing", "adapter.rank=8", "model.dtype=bfloat16"],
            "config": "galore-60m",
            "steps": 10000,
            "tokens": 1.3e9,
            "cells": {"perplexity": 30},
        },
        {"label": "unknown model", "overrides": ["model.name=nobody/nothing"]},
    ]
    record = size_full(table(rows))
    row, unsized = record["rows"]
    # 8 layers of q, k, v, o (512 -> 512), gate, up (512 -> 1376) and down.
    trainable = 8 * 8 * (4 * (512 + 512) + 3 * (512 + 1376))
    assert row["trainable"] == trainable
    assert row["memory"]["weights"] == 2 * 58_073_600
    assert row["memory"]["optimizer_state"] == 8 * trainable
    assert row["memory_bytes"] == sum(row["memory"].values())
    assert (row["steps"], row["tokens"]) == (10000, 1.3e9)
    assert unsized["state"] == "not sized: no configuration is packaged"
    assert record["numbers"][0]["verdict"] == "not run"
    assert f"{trainable:,}" in full_markdown(record)


def test_random_weights_are_run_on_the_configuration_itself(table, tmp_path, tiny, monkeypatch):
    planned = []
    monkeypatch.setattr(full_runs, "run_all", lambda runs, *_: planned.extend(runs))
    monkeypatch.setattr(full_runs, "_score", lambda *_: None)
    monkeypatch.setattr("lrft.lab.tables.full.results.read", lambda *_: None)
    rows = [
        {
            "label": weights,
            "overrides": [f"model.weights={weights}", f"model.tokenizer={tiny()}"],
            "config": "galore-60m",
            "cells": {"perplexity": 30},
        }
        for weights in ("random", "pretrained")
    ]
    run_full(table(rows), tmp_path / "out")
    names = [Path(run.recipe.model.name).name for run in planned]
    assert names == ["galore-60m", tiny().name]


def test_tasks_of_the_table_replace_those_of_the_recipe(table, tmp_path, monkeypatch):
    planned = []
    monkeypatch.setattr(full_runs, "run_all", lambda runs, *_: planned.extend(runs))
    monkeypatch.setattr(full_runs, "_score", lambda *_: None)
    monkeypatch.setattr("lrft.lab.tables.full.results.read", lambda *_: None)
    scored = tmp_path / "scored.jsonl"
    scored.write_text("{}\n")
    run_full(table(tasks=[{"method": "loss", "data": str(scored)}]), tmp_path / "out")
    (task,) = planned[0].recipe.eval.tasks
    assert (task.method, task.data.source) == ("loss", str(scored))


def test_files_of_the_benchmark_are_asked_for_before_anything_trains(scorer, table, tmp_path, monkeypatch):
    monkeypatch.delenv("BENCH", raising=False)
    path = table(tasks=[{"method": "loss", "data": "$BENCH/test.jsonl"}])
    size_full(path)
    with pytest.raises(
        RecipeError, match=r"row 'LoRA r4': .*uses \$BENCH, which is not set; export BENCH=FOLDER"
    ):
        run_full(path, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_overrides_reach_every_run_and_the_record(scorer, table, tmp_path):
    record = run_full(table(), tmp_path / "out", overrides=["train.max_steps=7"])
    (written,) = (tmp_path / "out" / "recipes").glob("*.yaml")
    assert yaml.safe_load(written.read_text())["train"]["max_steps"] == 7
    assert record["overrides"] == ["train.max_steps=7"]
    text = full_markdown(record)
    assert "Changed for this run: `train.max_steps=7`" in text
    assert "Seeds: the recipes' own." in text
    json.dumps(record, allow_nan=False)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"title": None}, r"table\.yaml.*: title: Field required"),
        ({"colour": "red"}, "colour: Extra inputs"),
        ({"tier": "exact"}, "tier: Input should be 'full'"),
        ({"settings": []}, "settings: "),
        ({"columns": {"perplexity": {"provenance": "M"}}}, r":\d+: columns\.perplexity\.provenance: "),
        ({"columns": {"perplexity": {"provenance": "C"}}}, r"columns\.perplexity\.provenance: "),
        (
            {"columns": {"perplexity": {"metric": "speed.up", "tolerance": 1, "provenance": "T"}}},
            r"columns\.perplexity: metric: 'speed\.up' is no TASK\.KEY; tasks: .*loss",
        ),
        (
            {"columns": {"perplexity": {"metric": "loss.perplexity", "provenance": "T"}}},
            r"columns\.perplexity: .*needs a tolerance",
        ),
        ({"tasks": ["lose"]}, r"tasks\.0: unknown task 'lose'.*loss"),
    ],
)
def test_a_broken_table_is_refused_by_key(table, changes, message):
    with pytest.raises(RecipeError, match=message):
        load_full(table(**changes))


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"cells": {"perplex": 1}}, r"unknown column 'perplex'; columns: .*perplexity"),
        (
            {"cells": {"perplexity": {"published": 1, "provenance": "M"}}},
            r"rows\.0\.cells\.perplexity\.provenance",
        ),
        ({"cells": {"perplexity": {"published": 1, "provenance": "M=C"}}}, r"cells\.perplexity\.provenance"),
        ({"recipe": "quickstrat"}, r":\d+: rows\.0\.recipe: no recipe 'quickstrat'.*quickstart"),
        ({"config": "galore-60"}, r":\d+: rows\.0\.config: no config 'galore-60'.*galore-60m"),
    ],
)
def test_a_broken_row_is_refused_by_key(table, row, message):
    with pytest.raises(RecipeError, match=message):
        load_full(table([{"label": "LoRA", **row}]))


def test_two_rows_of_one_label_are_refused(table):
    with pytest.raises(RecipeError, match="same label"):
        load_full(table([{"label": "LoRA"}, {"label": "LoRA"}]))


def test_a_row_whose_recipe_is_broken_is_named(table):
    with pytest.raises(RecipeError, match=r"row 'LoRA': .*adapter\.rnak"):
        size_full(table([{"label": "LoRA", "overrides": ["adapter.rnak=3"]}]))


@pytest.mark.slow
def test_a_tiny_table_runs_from_start_to_report(table, tmp_path):
    path = table([{"label": "LoRA", "cells": {"perplexity": 1.0}}])
    found = numbers(run_full(path, tmp_path / "out"))["LoRA", "perplexity"]
    assert found["ours"] > 1
    assert found["verdict"] == "missed"
    assert found["scored_rows"] == 6


@pytest.mark.slow
def test_a_model_that_cannot_be_downloaded_is_one_sentence(table, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    path = table(
        [{"label": "LoRA", "overrides": ["model.name=nobody/nothing"], "cells": {"perplexity": 1.0}}]
    )
    with pytest.raises(
        LrftError, match=r"LoRA, .*model\.name: 'nobody/nothing' could not be loaded"
    ) as error:
        run_full(path, tmp_path / "out")
    assert "\n" not in str(error.value)
    assert error.value.exit_code == 2
